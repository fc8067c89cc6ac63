"""Copying a point's disks by block jobs in a storage daemon, from checks to whole, durable files.

What becomes of the files is the business of who uses it: published in a directory
(:mod:`.files`), or put in the place of a domain's images (:mod:`.in_place`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtvault.errors import PointBusy, VirtvaultError, WorkFailed
from virtvault.models import PointDisk, RestoreResult
from workers import jobs
from workers.images import claim, require_unchanged, sync
from workers.monitor import Monitor
from workers.reading import Source
from workers.repository.directory import create_image
from workers.restore.rbd import Image
from workers.restore.story import Story, remove_directories

__all__ = ["Copy", "Copying", "add", "give_owner_of"]


@dataclass(frozen=True)
class Copy:
    """One block job: what of a disk it reads, and where that is written.

    ``name`` is the disk's target, and of an image further down in its chain with the ``depth``
    behind it. ``partial`` becomes ``final`` in the end; of a ``device`` they are the same, and
    of an RBD ``image`` names for a message. ``below`` is the name of the file that a copied link of
    a chain stands on; ``flat`` copies are the whole of the disk.
    """

    name: str
    disk: PointDisk
    partial: Path
    final: Path
    format: str
    flat: bool = True
    depth: int = 0
    below: str = ""
    device: bool = False
    image: Image | None = None

    @property
    def is_file(self) -> bool:
        """Whether ``partial`` and ``final`` are files that the run makes."""
        return not self.device and self.image is None


class Copying(Story):
    """A restore that copies first, and then does :meth:`conclude` with what it has copied."""

    # How it is copied; known before anything is made.
    copies: list[Copy]
    # RBD images of ours that are there still after all, and why.
    remains: tuple[str, ...] = ()

    @abstractmethod
    def require(self) -> None:
        """Refuse what cannot be done, before anything is touched; may run again after a kill."""

    @abstractmethod
    def conclude(self) -> None:
        """Give the copies their places; may run again after a kill."""

    def work(self) -> None:
        """See :meth:`Story.work`."""
        if self.run.phase == "planned" or (
            self.run.phase == "copying" and not self.daemon_answers()
        ):
            self._begin()
        if self.run.phase == "copying":
            self._follow()
        self.ties.step("committing")
        self.end_daemon()
        try:
            self.conclude()
        except OSError as error:
            raise WorkFailed(
                f"What was copied cannot be brought to its place: {error}.",
                "See to the destination's storage, and restore again.",
            ) from error

    def carry_on(self) -> RestoreResult:
        """See :meth:`Story.carry_on`."""
        try:
            return super().carry_on()
        except VirtvaultError as error:
            if self.remains:
                add(error, f"It may have left: {', '.join(self.remains)}. Remove it (`rbd rm`).")
            raise

    def undo(self) -> None:
        """See :meth:`Story.undo`."""
        self.end_daemon()
        self.remains = tuple(self._remove_images())
        for copy in self.copies:
            if copy.is_file:
                # The destination may not be there yet, or be a file: nothing of ours is in it.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    copy.partial.unlink()
        remove_directories(self)

    # -- the story ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self.ties.step("preparing")
        self.require_point()
        self.require()
        self.phase("planned")
        made = self.run.draft.pop("made", [])
        Copying.undo(self)  # what an earlier worker had begun
        if self.remains:
            raise WorkFailed("What an earlier worker had begun cannot be removed.", "Try again.")
        self.run.draft["made"] = made
        self.ties.check(self.engine.journal)
        # For a worker that cannot tell any more what is restored where: see _abandon().
        self.run.draft["locks"] = self.locks()
        self.run.draft["partials"] = [str(copy.partial) for copy in self.copies if copy.is_file]
        self.phase("planned")
        self.daemon.start()
        with contextlib.closing(self.monitor()) as monitor:
            sources = self.open_sources(monitor)
            self._require_links(sources)
            self.make()
            for copy in self.copies:
                self._make(copy, monitor)
                monitor.execute(
                    "blockdev-add",
                    **self._node(copy, sources[copy.disk.target], read_only=False),
                )
            actions = [self._action(copy, sources[copy.disk.target]) for copy in self.copies]
            monitor.execute("transaction", actions=actions)
        self.phase("copying")

    def make(self) -> None:
        """Make what the images need to be in."""

    def _follow(self) -> None:
        self.ties.step("copying")
        ours = {self._job(copy): copy.name for copy in self.copies}
        with contextlib.closing(self.monitor()) as monitor:
            try:
                jobs.follow(monitor, ours, self.engine.pace, self.sample)
            except VirtvaultError as error:
                if written := [str(copy.partial) for copy in self.copies if copy.device]:
                    add(error, f"{', '.join(written)}: overwritten in part.")
                raise
            self.ties.step("closing")
            for copy in self.copies:
                # Nor was what is outside the repository written to while it was read.
                require_unchanged(self.point.id, copy.disk.backing, self.settings.backing_roots)
                self._flush(monitor, copy)
        # The jobs are not dismissed before: they end with their daemon.
        self.phase("copied")

    def _flush(self, monitor: Monitor, copy: Copy) -> None:
        # Reopening read-only flushes and, unlike closing, says when that fails.
        node = self._node(copy, None, read_only=True)
        monitor.execute("blockdev-reopen", options=[node])

    # -- its steps ----------------------------------------------------------------------------

    def _require_links(self, sources: Mapping[str, Source]) -> None:
        for target, points in self.run.draft.get("links", {}).items():
            if [image.parent.name for image in sources[target].images] != points:
                raise PointBusy(
                    f"The chain of point {self.point.id} has just become another: a merge.",
                    "Try again.",
                )

    def _remove_images(self) -> Iterator[str]:
        for copy in self.copies:
            if copy.image is not None and copy.name in self.run.draft.get("identities", ()):
                try:
                    copy.image.remove()
                except VirtvaultError as error:
                    yield f"{copy.partial} ({error.message})"

    def _make(self, copy: Copy, monitor: Monitor) -> None:
        if copy.image is not None:
            identities = self.run.draft.setdefault("identities", {})
            # Durable first: a killed worker's next one knows that there may be something to remove.
            identities[copy.name] = ""
            self.engine.journal.write(self.run)
            identities[copy.name] = copy.image.make(monitor, copy.disk.virtual_size)
        if not copy.is_file:
            return
        claim(copy.partial)
        create_image(copy.partial, copy.disk.virtual_size, format=copy.format, backing=copy.below)

    def _node(self, copy: Copy, source: Source | None, *, read_only: bool) -> dict[str, Any]:
        """What is written to; without ``source`` as it was made."""
        node: dict[str, Any] = {
            "driver": copy.format,
            "node-name": f"dst-{copy.name}",
            "read-only": read_only,
            "discard": "unmap",
            "file": {
                "driver": "host_device" if copy.device else "file",
                "filename": str(copy.partial),
                "read-only": read_only,
                "discard": "unmap",
            },
        }
        if copy.image is not None:
            node["file"] |= {"driver": "rbd", **copy.image.location()}
            del node["file"]["filename"]
            # QEMU's zeroes would take room in the cluster.
            node["detect-zeroes"] = "unmap"
        if copy.device:
            node["size"] = copy.disk.virtual_size
        if copy.below:
            # What it stands on is being written itself; the same content is to be had here.
            # Without it QEMU would leave out the zeroes that hide what is below.
            node["backing"] = f"src-{copy.disk.target}-{copy.depth + 1}"
        return node

    def _action(self, copy: Copy, source: Source) -> dict[str, Any]:
        return {
            "type": "blockdev-backup",
            "data": {
                "job-id": self._job(copy),
                "device": f"{source.node}-{copy.depth}" if copy.depth else source.node,
                "target": f"dst-{copy.name}",
                "sync": "full" if copy.flat else "top",
                "speed": self.request.speed,
                "auto-dismiss": False,
                "x-perf": {"max-workers": 16, "max-chunk": 4 * 2**20},
            },
        }

    def _job(self, copy: Copy) -> str:
        return f"virtvault-{self.tag}-{copy.name}"

    def sync(self, copies: Iterable[Copy]) -> None:
        """Bring the copies' content to the disk."""
        for copy in copies:
            if copy.image is None and copy.partial.exists():
                sync(copy.partial, holes=copy.format == "raw" and not copy.device)


def add(error: VirtvaultError, text: str) -> None:
    """Have an error say something more."""
    error.message = f"{error.message} {text}"
    error.args = (error.message, error.mend)


def give_owner_of(path: Path, to: Path) -> None:
    """Let a file belong to whom another belongs, with its mode and security label."""
    entry = path.stat()
    os.chown(to, entry.st_uid, entry.st_gid)
    shutil.copymode(path, to)
    with contextlib.suppress(OSError):
        label = os.getxattr(path, "security.selinux")
        os.setxattr(to, "security.selinux", label)
