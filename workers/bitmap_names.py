"""The names of our dirty bitmaps: which repository, point and disk each counts from.

``virtvault.<repository id>.<point id>.<target>`` counts from the point. The target is in the name
because an image moves: given to another disk, it must not be taken for what was there before.
Beside it may stand

- its ``.witness`` (:mod:`workers.witness`),
- on QEMU before 4.0, its ``.spare`` (:mod:`workers.capture.direct`),
- while a backup with ``--bitmap`` runs, its ``.since``: what is written from the instant on, which
  becomes the user's bitmap at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PREFIX", "SINCE", "SPARE", "WITNESS", "OurBitmap", "parse"]

PREFIX = "virtvault."
SPARE = "spare"
WITNESS = "witness"
SINCE = "since"


@dataclass(frozen=True)
class OurBitmap:
    """What a bitmap's name says; ``kind`` is empty, or one of the three above."""

    repository: str
    point: str
    target: str
    kind: str = ""

    @property
    def name(self) -> str:
        """As QEMU knows it."""
        parts = [self.repository, self.point, self.target, self.kind]
        return PREFIX + ".".join(part for part in parts if part)

    @property
    def spare(self) -> str:
        """The name of its spare."""
        return replace(self, kind=SPARE).name

    @property
    def since(self) -> str:
        """The name of what becomes the user's bitmap."""
        return replace(self, kind=SINCE).name

    @property
    def witness(self) -> str:
        """The name of its witness."""
        return replace(self, kind=WITNESS).name


def parse(name: str) -> OurBitmap | None:
    """What a name says, None where it is not one of ours."""
    if not name.startswith(PREFIX):
        return None
    repository, point, target, kind, *_ = [*name.removeprefix(PREFIX).split("."), "", "", ""]
    return OurBitmap(repository, point, target, kind)
