"""Merging the images between two kept points of a chain into one, by a block-commit.

The kept point's image and those below it that go are committed into the lowest of these, in a
storage daemon. While that runs, every point that is kept reads the same as before: only what the
images above hide is written to. Then the merged image takes the place of the kept point's own by
one rename.

A kill at any line is mended by doing it again: ``pruning.json`` of the lowest point says what was
begun, before anything is changed, and with it what the merged image must turn out to be.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from virtvault.errors import (
    DomainBusy,
    JobFailed,
    MonitorError,
    NoRoom,
    PointBusy,
    RepositoryUnusable,
    WorkFailed,
)
from virtvault.models import DiskProgress, Point, PointDisk
from workers import digests, jobs
from workers.engine import Engine, Ties, tag_of
from workers.images import lock
from workers.journal import durable_write, sync_directory
from workers.monitor import Monitor
from workers.nbd_reader import extents
from workers.prune_plan import Merge
from workers.repository import DirectoryRepository, manifest, sidecar
from workers.storage_daemon import daemon_of

__all__ = [
    "BEGUN",
    "MARKED",
    "Damaged",
    "Merging",
    "Prepared",
    "being_read",
    "drop_old_lists",
    "finish_switch",
]

log = logging.getLogger(__name__)

# States in `pruning.json`: nothing was changed yet; something may have been.
MARKED, BEGUN = "marked", "merging"
# What QEMU says of an image that somebody else has open.
LOCKED = 'Failed to get "'


class Damaged(WorkFailed):
    """An image that would be merged is not what it was; nothing was changed."""


@dataclass(frozen=True)
class Prepared:
    """A merge that can be done.

    ``digests`` is the digest of its result's list, empty where it has none; ``expected`` has for
    the number of each chunk that changes the digest it must have, empty for nothing there.
    """

    merge: Merge
    digests: str
    expected: dict[str, str]


class Merging:
    """The merges of one domain, by the task that holds its chains (:meth:`pruning`)."""

    def __init__(
        self, engine: Engine, repository: DirectoryRepository, uuid: str, ties: Ties, speed: int
    ) -> None:
        self.engine = engine
        self.repository = repository
        self.uuid = uuid
        self.ties = ties
        self.speed = speed
        self.runtime = engine.settings.runtime_dir
        self.daemon = daemon_of(self.runtime, "prune", tag_of(ties.task_id))

    def prepare(self, merge: Merge) -> Prepared:
        """See that a merge can be done, and what must come of it; nothing is changed.

        :raises Damaged: an image is not what its digests say, or cannot be read.
        :raises NoRoom: there is less than it may take.
        """
        self._require_own(merge)
        try:
            self._require_room(merge)
            self._require_whole(merge)
            expected, touched, listed = self._expected(merge)
        except RepositoryUnusable as error:
            raise self._damaged(merge.top, error.message) from error
        chunks = {str(chunk): expected.get(chunk, "") for chunk in sorted(touched)}
        return Prepared(merge, listed, chunks)

    def do(self, prepared: Prepared) -> None:
        """Merge what has not been begun.

        :raises PointBusy: another program has an image open; nothing was changed.
        :raises WorkFailed: the merge failed; kept points read as before, and it can be done again.
        """
        merge = prepared.merge
        self._require_room(merge)
        with self._daemon() as monitor:
            self._open(monitor, merge)
            self._mark_begun(prepared)
            self._commit(monitor, merge)
        self._prove(merge)
        self._switch(merge)

    def finish(self, merge: Merge) -> None:
        """Carry on what an earlier task has begun; errors as in :meth:`do`."""
        self._require_own(merge)
        if self._image(merge.base, merge.target).exists():
            with self._daemon() as monitor:
                self._open(monitor, merge)
                self._commit(monitor, merge)
            self._prove(merge)
        self._switch(merge)

    # -- before anything is changed -----------------------------------------------------------

    def _require_room(self, merge: Merge) -> None:
        """The lowest image may grow by all that the others hold."""
        # Not what their files take: those may be compressed, and what is merged is not.
        above = [self._image(point, merge.target) for point in (merge.top, *merge.removed[:-1])]
        needed = sum(length for _, length, zero in extents(above) if not zero)
        if (free := self.repository.free()) < needed:
            raise NoRoom(
                f"Repository {self.repository.name} has {free} bytes free, and merging disk "
                f"{merge.target} of {', '.join(merge.removed)} into {merge.top} may take {needed}.",
                "Make room, then prune again.",
            )

    def _require_whole(self, merge: Merge) -> None:
        """What is merged must be what was stored: a merge would make damage look sound."""
        self.ties.step("proving")
        for point in (merge.top, *merge.removed[:-1]):
            disk = self._disk(point, merge.target)
            if self._listed(point, merge.target) is not None:
                damage = digests.check(
                    self._directory(point), disk, self.runtime, self._sample(merge.target)
                )
                if damage:
                    raise self._damaged(point, damage.detail)

    def busy(self, points: Iterable[str]) -> dict[str, str]:
        """The points of which somebody has an image locked, and what to say of them.

        A reader has that of the point it reads, by QEMU's own lock; ``pruning.json`` keeps others
        from beginning. It is asked of the points that go, and of those that get a new image: a
        lock is on a file and not on its name.
        """
        found = {}
        for point in points:
            for disk in self._point(point).disks:
                image = self._directory(point) / disk.file
                try:
                    manifest.backing_of(image)
                    os.close(lock(image, sharing=True))
                except RepositoryUnusable:
                    continue  # not there any more, or damaged: nobody reads it
                except DomainBusy:
                    found[point] = being_read(point)
        return found

    def _require_own(self, merge: Merge) -> None:
        """See that no header makes us read or write another file than the chain's own images.

        :raises Damaged: one would.
        """
        chain = (merge.top, *merge.removed, merge.below)
        for point, below in pairwise(chain):
            image = self._image(point, merge.target)
            if not image.exists() and point == merge.base:
                continue  # it has taken its place already
            expected = f"../{below}/{image.name}" if below else ""
            try:
                named = manifest.backing_of(image)
            except RepositoryUnusable as error:
                raise self._damaged(point, error.message) from error
            if named != expected:
                raise self._damaged(
                    point, f"{image.name} points to {named or 'nothing'} and not to {expected}."
                )

    def _expected(self, merge: Merge) -> tuple[dict[int, str], set[int], str]:
        """What the merged image will be where it changes, which chunks these are, and its list."""
        above = [self._image(point, merge.target) for point in (merge.top, *merge.removed[:-1])]
        base, whole = self._image(merge.base, merge.target), not merge.below
        touched = digests.touched(above)
        listed = self._listed(merge.base, merge.target)
        if listed is not None:
            found = digests.compute([base], self.runtime, whole=whole, chunks=touched)
            before = {chunk: listed[chunk] for chunk in touched & listed.keys()}
            if wrong := digests.differing(before, found):
                raise self._damaged(
                    merge.base, f"{base.name} differs from what was stored at {wrong[0]} MiB."
                )
        expected = digests.compute([*above, base], self.runtime, whole=whole, chunks=touched)
        above_listed = [self._listed(id_, merge.target) for id_ in (merge.top, *merge.removed[:-1])]
        if listed is None or None in above_listed:
            return expected, touched, ""
        made = {chunk: one for chunk, one in listed.items() if chunk not in touched} | expected
        return expected, touched, digests.store(self._directory(merge.top), merge.target, made)

    def _mark_begun(self, prepared: Prepared) -> None:
        """From here on the points between are lost, and the merge must be done."""
        merge = prepared.merge
        for point in (*merge.losing, *merge.removed[:-1], merge.base):
            directory = self._directory(point)
            mark = sidecar.read(directory, sidecar.PRUNING) or {}
            mark["state"] = BEGUN
            if point == merge.base:
                mark.setdefault("merges", {})[merge.target] = {
                    **asdict(merge),
                    "digests": prepared.digests,
                    "expected": prepared.expected,
                }
            sidecar.write(directory, sidecar.PRUNING, mark)

    # -- the commit ---------------------------------------------------------------------------

    def _daemon(self) -> _Daemon:
        return _Daemon(self)

    def _open(self, monitor: Monitor, merge: Merge) -> None:
        """The images bottom up; but for the lowest that goes all are read-only and not locked."""
        below: str | None = None
        try:
            if merge.below:
                point = self.repository.find(merge.below)
                for number, image in enumerate(
                    reversed(self.repository.chain(point, merge.target, force=True))
                ):
                    monitor.execute("blockdev-add", **_node(f"below-{number}", image, below))
                    below = f"below-{number}"
            base = self._image(merge.base, merge.target)
            try:
                monitor.execute("blockdev-add", **_node("base", base, below, writable=True))
            except MonitorError as error:
                raise _busy(merge.base, error) from error
            below = "base"
            for number, id_ in enumerate(reversed(merge.removed[:-1])):
                image = self._image(id_, merge.target)
                monitor.execute("blockdev-add", **_node(f"between-{number}", image, below))
                below = f"between-{number}"
            top = self._image(merge.top, merge.target)
            monitor.execute("blockdev-add", **_node("top", top, below))
        except MonitorError as error:
            raise RepositoryUnusable(
                f"The images of disk {merge.target} from {merge.base} to {merge.top} cannot be "
                f"opened: {error.message}",
                "See to the repository's storage, then prune again.",
            ) from error

    def _commit(self, monitor: Monitor, merge: Merge) -> None:
        self.ties.step("merging")
        job = f"virtvault-{tag_of(self.ties.task_id)}-{merge.target}"
        monitor.execute(
            "block-commit",
            job_id=job,
            device="top",
            top_node="top",
            base_node="base",
            speed=self.speed,
            auto_dismiss=False,
        )
        asked = False

        def sample(disks: tuple[DiskProgress, ...]) -> None:
            nonlocal asked
            self.ties.sample(disks)
            self.ties.check(self.engine.journal)
            if not asked and any(disk.status == "ready" for disk in disks):
                asked = True
                monitor.execute("job-complete", id=job)

        try:
            jobs.follow(monitor, {job: merge.target}, self.engine.pace, sample)
            # Reopening read-only flushes and, unlike closing, says when that fails.
            jobs.dismiss(monitor, {job: merge.target})
            base = self._image(merge.base, merge.target)
            node = _node("base", base, _below(monitor), writable=True)
            monitor.execute(
                "blockdev-reopen",
                options=[{**node, "read-only": True, "file": {**node["file"], "read-only": True}}],
            )
        except (JobFailed, MonitorError) as error:
            raise WorkFailed(
                f"Merging disk {merge.target} of {', '.join(merge.removed)} into {merge.top} "
                f"failed: {error.message}",
                "What is kept reads as before. Mend the cause, then prune again: it goes on.",
            ) from error

    def _prove(self, merge: Merge) -> None:
        """The merged image must be, chunk by chunk, what the images made together."""
        self.ties.step("proving")
        entry = self._entry(merge)
        expected = {int(chunk): digest for chunk, digest in entry["expected"].items()}
        base = self._image(merge.base, merge.target)
        descriptor = os.open(base, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        found = digests.compute(
            [base], self.runtime, whole=not merge.below, chunks=expected,
            sample=self._sample(merge.target),
        )  # fmt: skip
        if wrong := digests.differing({c: d for c, d in expected.items() if d}, found):
            raise WorkFailed(
                f"The merged image {base} is not what it must be: {len(wrong)} of "
                f"{len(expected)} MiB differ, the first at {wrong[0]} MiB of disk {merge.target}.",
                f"Point {merge.top} still has its own images and reads as before. See to the "
                "repository's storage, then prune again.",
            )

    # -- the switch ---------------------------------------------------------------------------

    def _switch(self, merge: Merge) -> None:
        """Let the merged image take the place of the kept point's own."""
        self.ties.step("committing")
        top = self._directory(merge.top)
        base = self._image(merge.base, merge.target)
        with self.repository.alone(self.uuid, self.ties.task_id):
            if base.exists():
                # A reader that began meanwhile has its lock on the image that is there: on the new
                # one it would have none, and a later merge would write into what it reads.
                held = self._locked(merge)
                try:
                    self._write_switch(merge, base)
                    os.replace(base, top / base.name)
                finally:
                    os.close(held)
                sync_directory(top)
                sync_directory(base.parent)
            finish_switch(top)
        self.forget(merge)

    def _locked(self, merge: Merge) -> int:
        """The kept point's own image, held as by a writer; gives the descriptor that holds it.

        :raises PointBusy: the point is being read.
        """
        try:
            return lock(self._image(merge.top, merge.target), sharing=True)
        except DomainBusy as error:
            raise PointBusy(
                f"{being_read(merge.top)} What was merged takes its image's place after that.",
                "Prune again when that has ended. Until then the points that were merged into it "
                "stay marked, and every other point reads as before.",
            ) from error

    def forget(self, merge: Merge) -> None:
        """Say that nothing of the merge is left to do: the points between still have to go."""
        directory = self._directory(merge.base)
        mark = sidecar.read(directory, sidecar.PRUNING) or {}
        if mark.get("merges", {}).pop(merge.target, None) is not None:
            sidecar.write(directory, sidecar.PRUNING, mark)

    def _write_switch(self, merge: Merge, base: Path) -> None:
        top = self._directory(merge.top)
        disk = self._disk(merge.top, merge.target)
        entry = base.stat()
        to = replace(
            disk,
            parent=merge.below,
            sync="incremental" if merge.below else "full",
            length=entry.st_size,
            stored=entry.st_blocks * 512,
            digests=self._entry(merge)["digests"],
        )
        switch = sidecar.read(top, sidecar.SWITCH) or {"disks": {}, "merged": []}
        switch["disks"][merge.target] = {
            **{key: getattr(to, key) for key in ("parent", "sync", "length", "stored", "digests")},
            "backing_file": f"../{merge.below}/{disk.file}" if merge.below else "",
        }
        merged = {merged for id_ in merge.removed for merged in (id_, *self._point(id_).merged)}
        switch["merged"] = sorted({*switch["merged"], *merged})
        sidecar.write(top, sidecar.SWITCH, switch)

    # -- small things -------------------------------------------------------------------------

    def _entry(self, merge: Merge) -> dict[str, Any]:
        mark = sidecar.read(self._directory(merge.base), sidecar.PRUNING) or {}
        entry: dict[str, Any] = mark["merges"][merge.target]
        return entry

    def _directory(self, point: str) -> Path:
        return self.repository.directory(self.uuid, point)

    def _image(self, point: str, target: str) -> Path:
        return self._directory(point) / f"{target}.qcow2"

    def _point(self, point: str) -> Point:
        return manifest.read(self._directory(point))

    def _disk(self, point: str, target: str) -> PointDisk:
        return next(disk for disk in self._point(point).disks if disk.target == target)

    def _listed(self, point: str, target: str) -> dict[int, str] | None:
        """The digests of a point's own image; None where there are none, or none any more."""
        disk = self._disk(point, target)
        if not disk.digests:
            return None
        try:
            return digests.load(self._directory(point), target, disk.digests)
        except RepositoryUnusable as error:
            log.warning("disk %s of point %s is merged unproven: %s", target, point, error)
            return None

    def _sample(self, target: str) -> Callable[[int, int], None]:
        def sample(done: int, total: int) -> None:
            self.ties.sample((DiskProgress(target, done, total, "running"),))
            self.ties.check(self.engine.journal)

        return sample

    def _damaged(self, point: str, detail: str) -> Damaged:
        return Damaged(
            f"Point {point}: {detail}",
            f"`virtvault verify {point}` says what stands on it; nothing was merged.",
        )


class _Daemon:
    """The storage daemon of a merge: it ends with the worker, so that it never holds a chain."""

    def __init__(self, merging: Merging) -> None:
        self._merging = merging

    def __enter__(self) -> Monitor:
        daemon, settings = self._merging.daemon, self._merging.engine.settings
        daemon.end()
        daemon.start(ends_with_us=True)
        self._monitor = daemon.monitor(settings.qmp_timeout)
        return self._monitor

    def __exit__(self, *_: object) -> None:
        self._monitor.close()
        self._merging.daemon.end()
        self._merging.daemon.remove()


def finish_switch(directory: Path) -> None:
    """Have the manifest say itself what ``switch.json`` says of images that are in place."""
    if sidecar.read(directory, sidecar.SWITCH) is None:
        return
    point = manifest.read(directory)
    durable_write(directory / manifest.FILE, manifest.text(point))
    sidecar.drop(directory, sidecar.SWITCH)


def drop_old_lists(directory: Path) -> None:
    """Remove the lists of digests that the manifest does not name (any more)."""
    point = manifest.read(directory)
    kept = {digests.file_name(disk.target, disk.digests) for disk in point.disks if disk.digests}
    for path in directory.glob("*.digests"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _node(name: str, image: Path, below: str | None, *, writable: bool = False) -> dict[str, Any]:
    return {
        "driver": "qcow2",
        "node-name": name,
        "read-only": not writable,
        "discard": "unmap",
        **({} if writable else {"force-share": True}),
        "file": {
            "driver": "file",
            "filename": str(image),
            "read-only": not writable,
            "discard": "unmap",
        },
        "backing": below,
    }


def _below(monitor: Monitor) -> str | None:
    """The node right below the lowest image that goes."""
    names = {
        node["node-name"]
        for node in monitor.execute("query-named-block-nodes", flat=True)
        if node["node-name"].startswith("below-")
    }
    return max(names, key=lambda name: int(name.removeprefix("below-"))) if names else None


def _busy(point: str, error: MonitorError) -> PointBusy | MonitorError:
    if LOCKED not in error.message:
        return error
    return PointBusy(being_read(point), "Prune again when that has ended.")


def being_read(point: str) -> str:
    """What is said of a point that somebody reads."""
    return f"Point {point} is being read (a restore, an export, or a tool has its image open)."
