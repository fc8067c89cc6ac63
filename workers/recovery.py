"""Undoing a run, finishing one that its worker left, and clearing old bitmaps.

Everything here looks before it steps and may run again after a kill at any line.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from pathlib import Path

from virtvault.errors import (
    DomainStopped,
    MonitorError,
    RepositoryUnusable,
    UnknownDomain,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import Point
from workers import disks as disk_view
from workers import isolation, jobs
from workers.bitmap_names import SINCE, SPARE, parse
from workers.capture.offline import daemon_of
from workers.disks import Disk
from workers.engine import Engine
from workers.hypervisor import LibvirtMonitor
from workers.isolation import Names
from workers.journal import Run
from workers.point_bitmaps import clear_user_bitmap, remove_bitmap, remove_bitmaps
from workers.repository import DirectoryRepository, open_repository
from workers.repository.directory import IDENTITY
from workers.targets import Targets
from workers.verify_remains import clear_away

__all__ = ["Undo", "settle", "tidy"]

log = logging.getLogger(__name__)

# Seconds cancelled jobs may take to end. Their exports are gone by then, so nothing holds them.
CANCEL_SECONDS = 30.0


class Undo:
    """The way back of one backup run, the same for failure, cancel and recovery."""

    def __init__(self, engine: Engine, run: Run) -> None:
        self.engine = engine
        self.run = run
        self.targets = Targets(engine.settings, run)

    def all(self) -> None:
        """Leave the guest, QEMU and the repository as if the run had not been.

        Parents' bitmaps never stopped recording, so no interval is lost. The journal stays until
        the end: where libvirt or the repository is away now, the undo is taken up again later.
        """
        if self.run.way != "direct":
            # First of all: a stalled export would hold up QEMU's main loop, and with it the guest,
            # in each of the steps that follow. Killed, it fails what is in flight; the guest's own
            # writes go on, since a broken snapshot is nothing to them. A guest that is not set
            # apart would see its own writes fail, so there the jobs end first.
            self.targets.kill()
        if self.run.phase not in ("planned", "undone"):
            self.in_qemu(keep_bitmap=False)
        elif self.run.way == "offline":
            self._end_daemon()
        self.targets.kill()
        if self.run.unstarted:
            self.engine.hypervisor.end_unstarted(self.run.uuid)
            self.run.unstarted = False
        self.targets.remove()
        self._remove_partial()
        self.engine.journal.forget(self.run.task_id)

    def in_qemu(self, *, keep_bitmap: bool) -> None:
        """Take everything of the run out of QEMU but, after success, the new bitmap.

        :raises VirtvaultError: not all of it could be taken out.
        """
        if self.run.way == "offline":
            self._offline(keep_bitmap=keep_bitmap)
            return
        try:
            domain = self.engine.hypervisor.domain(self.run.uuid)
            monitor = self.engine.hypervisor.monitor(domain)
        except (DomainStopped, UnknownDomain) as error:
            # Nodes, jobs and filters ended with QEMU; what it stored of bitmaps is in the images.
            log.info("task %s: nothing to take out of QEMU: %s", self.run.task_id, error)
            if not keep_bitmap:
                self._remove_stored_bitmaps()
            return
        try:
            if self.run.phase == "instant" and self.run.was_running:
                self._end_pause(monitor)
            if not keep_bitmap:
                self.run.phase = "undoing"
                self.engine.journal.write(self.run)
            self._qemu(monitor, keep_bitmap=keep_bitmap)
        except DomainStopped as error:
            # Only where it really has: a refusal that looks alike must not leave a filter behind.
            if self.engine.hypervisor.is_active(self.run.uuid):
                raise
            log.info("task %s: domain ended meanwhile: %s", self.run.task_id, error)
            if not keep_bitmap:
                self._remove_stored_bitmaps()
        finally:
            monitor.close()

    def _qemu(self, monitor: LibvirtMonitor, *, keep_bitmap: bool) -> None:
        found = disk_view.discover(monitor, monitor.xml())
        # A disk unplugged meanwhile is not found any more, its nodes and job are.
        targets = {d.target for d in found} | set(self.run.targets)
        every = [Names(self.run.tag, target) for target in sorted(targets)]
        ours = {names.job: names.target for names in every}
        if self.run.way == "direct" and not jobs.cancel(monitor, ours, CANCEL_SECONDS):
            self.targets.kill()
        if not jobs.cancel(monitor, ours, CANCEL_SECONDS):
            raise WorkFailed(
                f"Domain {self.run.domain}: its block jobs do not end.",
                "The worker tries again; see the QEMU log of the domain.",
            )
        jobs.dismiss(monitor, ours)
        if self.run.serving:
            isolation.stop_serving(monitor, every)
            self.run.serving = False
        for names in every:
            isolation.remove_snapshot(monitor, names)
        for disk in found:
            if disk.qom_path:
                isolation.put_back(monitor, disk, Names(self.run.tag, disk.target))
            remove_bitmap(monitor, disk, Names(self.run.tag, disk.target).changed)
        for names in every:
            isolation.remove_nodes(monitor, names)
        if not keep_bitmap:
            self._remove_new_bitmaps(monitor)

    def _offline(self, *, keep_bitmap: bool) -> None:
        """End the storage daemon, and take the new bitmap out of the images or out of QEMU."""
        self._end_daemon()
        if keep_bitmap:
            return
        self.run.phase = "undoing"
        self.engine.journal.write(self.run)
        self._remove_stored_bitmaps()

    def _remove_stored_bitmaps(self) -> None:
        try:
            # The parent's used spare before what tells that it was used.
            remove_bitmaps(self.engine, self.run.uuid, self._is_spent)
            remove_bitmaps(self.engine, self.run.uuid, self._is_new)
        except UnknownDomain as error:
            log.info("task %s: no images to take bitmaps out of: %s", self.run.task_id, error)

    def _end_daemon(self) -> None:
        daemon = daemon_of(self.engine, self.run)
        daemon.end()
        shutil.rmtree(daemon.directory, ignore_errors=True)

    def _remove_new_bitmaps(self, monitor: LibvirtMonitor) -> None:
        for disk in disk_view.discover(monitor, monitor.xml()):
            names = sorted({name for layer in disk.layers for name in layer.bitmaps})
            # The parent's spare too, and before the new ones that tell of this run: a job that
            # ended well has used it, whatever became of the backup.
            spent = [n for n in names if self._is_spent(disk, n)]
            for name in [*spent, *(n for n in names if self._is_new(disk, n))]:
                remove_bitmap(monitor, disk, name)

    def _is_new(self, _disk: Disk, name: str) -> bool:
        ours = parse(name)
        return ours is not None and (ours.repository, ours.point) == (
            self.run.repository_id,
            self.run.point,
        )

    def _is_spent(self, disk: Disk, name: str) -> bool:
        ours = parse(name)
        return (
            self.run.way == "direct"
            and disk.target in self.run.targets
            and ours is not None
            and (ours.repository, ours.kind) == (self.run.repository_id, SPARE)
        )

    def _remove_partial(self) -> None:
        if not self.run.partial:
            return
        partial = Path(self.run.partial)
        root = partial.parents[1]
        if not _there(root / IDENTITY):
            # Not mounted now: what is not there to be seen is not removed.
            self.run.phase = "undone"
            self.engine.journal.write(self.run)
            raise RepositoryUnusable(
                f"The repository at {root} is not there; {partial.name} is removed when it is.",
                "Mount it; the worker tries again.",
            )
        try:
            shutil.rmtree(partial)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise RepositoryUnusable(
                f"{self.run.partial} cannot be removed: {error.strerror}.",
                "Mend the repository; the worker tries again.",
            ) from error

    def _end_pause(self, monitor: LibvirtMonitor) -> None:
        """The worker died at the instant and so, perhaps, did the guard."""
        stands = monitor.execute("query-status")["status"] == "paused"
        # One that somebody has suspended since then is theirs to resume.
        if stands and not self.engine.hypervisor.is_suspended_by_user(self.run.uuid):
            log.warning("domain %s: resuming the guest its dead backup paused", self.run.domain)
            monitor.execute("cont")
        if self.run.request.get("freeze") != "never":
            # Harmless where nothing is frozen, and without an agent nothing can be.
            with contextlib.suppress(MonitorError):
                monitor.agent("guest-fsfreeze-thaw", self.engine.settings.freeze_timeout)


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a stale or broken mount
        return False


def settle(engine: Engine, run: Run, repository: DirectoryRepository, point: Point) -> None:
    """After the commit: parents' bitmaps are not needed any more, nor is the journal."""
    # Only on the point's own disks: one that was left out, or stands beside the chain, needs its
    # parent's bitmap still.
    covered = {disk.target for disk in point.disks if disk.bitmap}

    def is_old(disk: Disk, name: str) -> bool:
        ours = parse(name)
        return (
            disk.target in covered
            and ours is not None
            and ours.repository == repository.id
            and ((ours.point, ours.target) != (point.id, disk.target) or ours.kind == SINCE)
        )

    try:
        if name := run.request.get("bitmap"):
            clear_user_bitmap(engine, run, name, covered)
        if not run.superseded and engine.hypervisor.is_active(run.uuid):
            remove_bitmaps(engine, run.uuid, is_old)
        else:
            # Where it is shut off its next backup opens the images for writing anyhow.
            log.info("old bitmaps of domain %s stay until its next backup", run.domain)
    except (DomainStopped, UnknownDomain) as error:
        log.info("old bitmaps of domain %s stay until its next backup: %s", run.domain, error)
    Targets(engine.settings, run).remove()
    engine.journal.forget(run.task_id)


def tidy(engine: Engine) -> None:
    """Finish what could not be undone, or settled, when its run ended."""
    for run in engine.journal.all():
        if run.kind not in ("backup", "verify") or not (run.error or run.phase == "committed"):
            continue
        try:
            if run.kind == "verify":
                clear_away(engine, run)
                engine.journal.forget(run.task_id)
                continue
            # Held: a new run of that domain is just doing this itself.
            with engine.journal.hold(run.uuid, "housekeeping"):
                if engine.journal.read(run.task_id) is None:
                    continue
                if run.request.get("sync") == "none":
                    Undo(engine, run).all()
                    continue
                # Killed right after the rename, the journal still says "copied".
                if run.phase != "committed" and not Path(run.partial).with_suffix("").exists():
                    Undo(engine, run).all()
                    continue
                repository = open_repository(engine.settings, run.repository)
                settle(engine, run, repository, repository.find(run.point))
        except (VirtvaultError, OSError) as error:
            # One run's trouble must not keep the others from being tidied.
            log.info("task %s is tidied later: %s", run.task_id, error)
