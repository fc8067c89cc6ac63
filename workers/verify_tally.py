"""How far a verify is: the bytes read of each image, told by disk target."""

from __future__ import annotations

from collections.abc import Callable

from virtvault.models import DiskProgress
from workers.engine import Ties
from workers.journal import Journal
from workers.verify_layer import throttled

__all__ = ["Tally"]


class Tally:
    """Counts and reports; ``speed`` is the most bytes a second, 0 for no limit."""

    def __init__(self, ties: Ties, journal: Journal, speed: int) -> None:
        self._ties = ties
        self._journal = journal
        self._speed = speed
        # By target and point: bytes done, and to do.
        self._images: dict[tuple[str, str], tuple[int, int]] = {}

    def expect(self, target: str, point: str, total: int) -> None:
        """An image is to be read, of about so many bytes."""
        self._images[target, point] = (0, total)

    def sampler(self, target: str, point: str) -> Callable[[int, int], None]:
        """What to call with the bytes done and to do of that image; raises where to stop."""

        def sample(done: int, total: int) -> None:
            if total:
                self._images[target, point] = (done, total)
                self._ties.sample(self._by_target())
            waiting()

        def waiting() -> None:
            self._ties.check(self._journal)

        return throttled(sample, self._speed, waiting)

    def _by_target(self) -> tuple[DiskProgress, ...]:
        sums: dict[str, tuple[int, int]] = {}
        for (target, _), (done, total) in self._images.items():
            before = sums.get(target, (0, 0))
            sums[target] = (before[0] + done, before[1] + total)
        return tuple(DiskProgress(t, *sums[t], "running") for t in sorted(sums))
