"""Restore ``flatten``: the disks of a point as stand-alone images, by block jobs in a
qemu-storage-daemon, so that progress, pause, cancel and recovery are those of a backup.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from virtvault import schemas
from virtvault.errors import (
    DestinationExists,
    DomainStopped,
    InvalidRequest,
    NoRoom,
    UnknownDisk,
)
from virtvault.models import (
    DiskProgress,
    Point,
    PointDisk,
    RestoredDisk,
    RestoreRequest,
    RestoreResult,
)
from workers import jobs, storage_daemon
from workers.backup import Duplicate
from workers.engine import Engine, Ties, now, tag_of
from workers.images import punch_holes, require_own_backing, require_unchanged
from workers.jobs import Detached
from workers.journal import HeldElsewhere, Run, sync_directory
from workers.monitor import Monitor
from workers.repository import DirectoryRepository, open_repository
from workers.repository.directory import create_image
from workers.storage_daemon import StorageDaemon

__all__ = ["daemon_of", "restore"]


@dataclass(frozen=True)
class _Target:
    """One disk's way: its chain (own image first), and where it is written and published."""

    disk: PointDisk
    chain: tuple[Path, ...]
    partial: Path
    final: Path
    job: str


def daemon_of(engine: Engine, task_id: str) -> StorageDaemon:
    """The storage daemon of a restore, running or not."""
    return storage_daemon.daemon_of(engine.settings.runtime_dir, "restore", tag_of(task_id))


def restore(engine: Engine, request: RestoreRequest, ties: Ties) -> RestoreResult:
    """Restore a point, or finish what an earlier worker began of this task.

    :raises VirtvaultError: nothing was published at the destination.
    :raises Detached: the worker is stopping; the journal has the run.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        done = _restore(engine, request, ties)
    except (Detached, Duplicate):
        raise
    except BaseException:
        engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
        raise
    engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
    return done


def _restore(engine: Engine, request: RestoreRequest, ties: Ties) -> RestoreResult:
    repository = open_repository(engine.settings, request.repository)
    point = repository.find(request.point)
    ties.domain = point.domain
    to = _destination(engine, request.to)
    key = f"restore-{hashlib.sha256(str(to).encode()).hexdigest()[:16]}"
    try:
        with engine.journal.hold(key, ties.task_id):
            # A second delivery after Redis lost the result: what it did is there already.
            if (done := engine.journal.finished(ties.task_id)) is not None:
                return schemas.load(RestoreResult, done)
            return _Restore(engine, request, ties, repository, point, to).carry_on()
    except HeldElsewhere as held:
        if held.holder == ties.task_id:
            raise Duplicate from held
        raise DestinationExists(
            f"Task {held.holder} is restoring into {to}.", "Choose another directory."
        ) from held


class _Restore:
    def __init__(
        self,
        engine: Engine,
        request: RestoreRequest,
        ties: Ties,
        repository: DirectoryRepository,
        point: Point,
        to: Path,
    ) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.point = point
        self.to = to
        self.daemon = daemon_of(engine, ties.task_id)
        self.run = engine.journal.read(ties.task_id) or Run(
            task_id=ties.task_id,
            kind="restore",
            request=schemas.dump(request),
            domain=point.domain,
            uuid=point.uuid,
            repository=repository.name,
            point=point.id,
            started=now(),
        )
        self.targets = [self._target(repository, disk) for disk in self._chosen()]

    def carry_on(self) -> RestoreResult:
        try:
            if self.run.phase == "planned" or not self._still_there():
                self._begin()
            if self.run.phase == "copying":
                self._follow()
            self._publish()
            result = self._result()
            self.engine.journal.finish(self.run.task_id, schemas.dump(result))
            return result
        except Detached:
            raise
        except BaseException:
            self._clean()
            self.engine.journal.forget(self.run.task_id)
            raise

    # -- the story ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self.ties.step("preparing")
        self._refuse_overwriting()
        self._require_room()
        for target in self.targets:
            backing = target.disk.backing
            require_own_backing(target.chain, outside=backing[0].path if backing else "")
            self._require_unchanged(target)
        self.run.phase = "planned"
        self.engine.journal.write(self.run)
        self._clean()
        self.ties.check(self.engine.journal)
        try:
            self.to.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidRequest(
                f"Cannot make the directory {self.to}: {error.strerror}.", "Choose another."
            ) from error
        for target in self.targets:
            create_image(target.partial, target.disk.virtual_size, format=self.request.format)
        self.daemon.start()
        monitor = self._monitor()
        try:
            for target in self.targets:
                self._open(monitor, target)
            self._start(monitor)
        finally:
            monitor.close()
        self.run.phase = "copying"
        self.engine.journal.write(self.run)

    def _follow(self) -> None:
        self.ties.step("copying")
        monitor = self._monitor()
        ours = {target.job: target.disk.target for target in self.targets}
        try:
            jobs.follow(monitor, ours, self.engine.pace, self._sample)
            self.ties.step("closing")
            for target in self.targets:
                # Nor was it written to while it was read.
                self._require_unchanged(target)
                # Reopening read-only flushes and, unlike closing, says when that fails.
                node = self._destination_node(target, read_only=True)
                monitor.execute("blockdev-reopen", options=[node])
        finally:
            monitor.close()
        # The jobs are not dismissed before: they end with their daemon.
        self.run.phase = "copied"
        self.engine.journal.write(self.run)

    def _publish(self) -> None:
        self.ties.step("committing")
        self.daemon.end()
        self._refuse_overwriting()
        for target in self.targets:
            if target.partial.exists():
                descriptor = os.open(target.partial, os.O_RDWR)
                try:
                    if self.request.format == "raw":
                        punch_holes(descriptor)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                _publish_file(target.partial, target.final)
        sync_directory(self.to)
        shutil.rmtree(self.daemon.directory, ignore_errors=True)

    # -- its steps ----------------------------------------------------------------------------

    def _open(self, monitor: Monitor, target: _Target) -> None:
        """The chain bottom up, each backing named by us: no header makes QEMU open a file."""
        below: str | None = None
        images = [(str(image), "qcow2") for image in target.chain]
        images += [(image.path, image.format) for image in target.disk.backing]
        for depth, (path, format_) in reversed(list(enumerate(images))):
            node = f"src-{target.disk.target}-{depth}"
            monitor.execute(
                "blockdev-add",
                driver=format_,
                node_name=node,
                read_only=True,
                # A running domain may have what a `top` stands on open, too.
                force_share=True,
                file={"driver": "file", "filename": path, "read-only": True},
                **({} if format_ == "raw" else {"backing": below}),
            )
            below = node
        monitor.execute("blockdev-add", **self._destination_node(target, read_only=False))

    def _destination_node(self, target: _Target, *, read_only: bool) -> dict[str, object]:
        return {
            "driver": self.request.format,
            "node-name": f"dst-{target.disk.target}",
            "read-only": read_only,
            "discard": "unmap",
            "file": {
                "driver": "file",
                "filename": str(target.partial),
                "read-only": read_only,
                "discard": "unmap",
            },
        }

    def _start(self, monitor: Monitor) -> None:
        actions = [
            {
                "type": "blockdev-backup",
                "data": {
                    "job-id": target.job,
                    "device": f"src-{target.disk.target}-0",
                    "target": f"dst-{target.disk.target}",
                    "sync": "full",
                    "speed": self.request.speed,
                    "auto-dismiss": False,
                    "x-perf": {"max-workers": 16, "max-chunk": 4 * 2**20},
                },
            }
            for target in self.targets
        ]
        monitor.execute("transaction", actions=actions)

    def _sample(self, disks: tuple[DiskProgress, ...]) -> None:
        self.ties.sample(disks)
        self.ties.check(self.engine.journal)

    def _require_unchanged(self, target: _Target) -> None:
        roots = self.engine.settings.backing_roots
        require_unchanged(self.point.id, target.disk.backing, roots)

    def _still_there(self) -> bool:
        """Whether the run can go on where it was: its daemon lives, or its work is done."""
        if self.run.phase == "copied":
            return True
        try:
            self._monitor().close()
        except DomainStopped:
            return False
        return True

    def _clean(self) -> None:
        self.daemon.end()
        shutil.rmtree(self.daemon.directory, ignore_errors=True)
        for target in self.targets:
            # The destination may not be there yet, or be a file: then nothing of ours is in it.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                target.partial.unlink()

    # -- bad input ----------------------------------------------------------------------------

    def _chosen(self) -> list[PointDisk]:
        known = {disk.target: disk for disk in self.point.disks}
        for wanted in self.request.disks:
            if wanted not in known:
                raise UnknownDisk(
                    f"Point {self.point.id} has no disk {wanted!r}.",
                    f"It has {', '.join(known)}.",
                )
        return [d for t, d in known.items() if not self.request.disks or t in self.request.disks]

    def _refuse_overwriting(self) -> None:
        # Once published, the partial is gone and the final file is ours.
        done = self.run.phase == "copied"
        there = [
            str(target.final)
            for target in self.targets
            if target.final.exists()
            and (
                not done or (target.partial.exists() and not target.partial.samefile(target.final))
            )
        ]
        if there:
            raise DestinationExists(
                f"Already there: {', '.join(there)}.",
                "Remove them, or restore into another directory.",
            )

    def _require_room(self) -> None:
        """The images of the chains hold at least what the result will."""
        # Data that a later image overwrites is counted twice: an upper bound, capped by the size.
        needed = sum(
            min(
                target.disk.virtual_size,
                sum(image.stat().st_blocks * 512 for image in target.chain),
            )
            for target in self.targets
        )
        existing = next(p for p in (self.to, *self.to.parents) if p.exists())
        stat = os.statvfs(existing)
        free = stat.f_bavail * stat.f_frsize
        if free < needed:
            raise NoRoom(
                f"{self.to} has {free} bytes free and the restore needs up to {needed}.",
                "Make room, or restore elsewhere.",
            )

    # -- small things -------------------------------------------------------------------------

    def _target(self, repository: DirectoryRepository, disk: PointDisk) -> _Target:
        tag = tag_of(self.ties.task_id)
        name = f"{disk.target}.{self.request.format}"
        return _Target(
            disk=disk,
            chain=tuple(repository.chain(self.point, disk.target)),
            partial=self.to / f".{name}.{tag}.partial",
            final=self.to / name,
            job=f"virtvault-{tag}-{disk.target}",
        )

    def _monitor(self) -> Monitor:
        return self.daemon.monitor(self.engine.settings.qmp_timeout)

    def _result(self) -> RestoreResult:
        return RestoreResult(
            task_id=self.run.task_id,
            point=self.point.id,
            domain=self.point.domain,
            host=self.engine.settings.host,
            repository=self.run.repository,
            mode=self.request.mode,
            to=str(self.to),
            state="complete",
            started=self.run.started,
            finished=now(),
            disks=tuple(
                RestoredDisk(
                    target=t.disk.target,
                    path=str(t.final),
                    format=self.request.format,
                    virtual_size=t.disk.virtual_size,
                    stored=t.final.stat().st_blocks * 512,
                )
                for t in self.targets
            ),
        )


def _publish_file(partial: Path, final: Path) -> None:
    """Give the file its name, never over another that came meanwhile.

    :raises DestinationExists: one did.
    """
    try:
        os.link(partial, final)
    except FileExistsError as error:
        if not partial.samefile(final):
            raise DestinationExists(
                f"{final} appeared while it was being restored.",
                "Remove it, or restore into another directory.",
            ) from error
    except OSError:
        # A file system without hard links: looked at a moment ago.
        partial.rename(final)
        return
    partial.unlink()


def _destination(engine: Engine, to: str) -> Path:
    """The directory meant, inside a restore root.

    :raises InvalidRequest: it is outside all of them.
    """
    roots = [Path(root).resolve() for root in engine.settings.restore_roots]
    if not roots:
        raise InvalidRequest("This worker has no restore_roots.", "Set them in its configuration.")
    path = (roots[0] / to).resolve()
    if not any(path.is_relative_to(root) for root in roots):
        raise InvalidRequest(
            f"{path} is outside the restore roots of {engine.settings.host}.",
            f"Restore below {', '.join(str(root) for root in roots)}.",
        )
    return path
