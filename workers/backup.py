"""One backup of one domain, read from top to bottom.

Nothing is published before all of it is durable, nothing is dropped before its replacement is,
and a kill at any line is mended by :func:`workers.recovery` from the journal.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from virtvault import schemas
from virtvault.errors import (
    DomainBusy,
    NothingToBackUp,
    NotSupported,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import BackupRequest, BackupResult, DiskProgress, Point
from workers import disks as disk_view
from workers import instant, isolation, jobs
from workers.disks import Disk
from workers.engine import Engine, Ties, now, tag_of
from workers.hypervisor import LibvirtMonitor
from workers.isolation import Names
from workers.jobs import Detached
from workers.journal import HeldElsewhere, Run
from workers.plan import DiskPlan, bitmap_name, decide
from workers.record import complete, draft_disk, result
from workers.recovery import Undo, settle
from workers.repository import DirectoryRepository, open_repository
from workers.targets import Targets

__all__ = ["Duplicate", "backup"]

log = logging.getLogger(__name__)


class Duplicate(Exception):
    """Another delivery of the same task is at work on it: step aside."""


def backup(engine: Engine, request: BackupRequest, ties: Ties) -> BackupResult:
    """Back up a domain, or finish what an earlier worker began of this task.

    :raises VirtvaultError: nothing was published, the guest is as before.
    :raises Detached: the worker is stopping; the journal has the run.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        done = _backup(engine, request, ties)
    except (Detached, Duplicate):
        raise
    except BaseException as error:
        _mark_failed(engine, ties.task_id, error)
        engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
        raise
    engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
    return done


def _backup(engine: Engine, request: BackupRequest, ties: Ties) -> BackupResult:
    repository = open_repository(engine.settings, request.repository)
    domain = engine.hypervisor.domain(request.domain)
    name, uuid = domain.name(), domain.UUIDString()
    ties.domain = name
    run = engine.journal.read(ties.task_id)
    if run is None and (done := _committed_before(repository, uuid, ties.task_id)):
        return result(done, 0.0)
    try:
        with engine.journal.hold(uuid, ties.task_id):
            run = engine.journal.read(ties.task_id)
            if run is None:
                _clear_away(engine, uuid)
                point = _point_id(ties.task_id)
                run = Run(
                    task_id=ties.task_id,
                    kind="backup",
                    request=schemas.dump(request),
                    domain=name,
                    uuid=uuid,
                    repository=repository.name,
                    point=point,
                    started=now(),
                    bitmap=bitmap_name(repository.id, point),
                    partial=str(repository.partial(uuid, point)),
                )
            return Backup(engine, request, ties, repository, run).carry_on()
    except HeldElsewhere as held:
        if held.holder == ties.task_id:
            raise Duplicate from held
        raise DomainBusy(
            f"Domain {name} is being backed up by task {held.holder}.", held.mend
        ) from held


class Backup:
    """The run of one backup, holding its domain."""

    def __init__(
        self,
        engine: Engine,
        request: BackupRequest,
        ties: Ties,
        repository: DirectoryRepository,
        run: Run,
    ) -> None:
        self.engine = engine
        self.settings = engine.settings
        self.request = request
        self.ties = ties
        self.repository = repository
        self.run = run
        self.tag = run.point[-8:]
        self.targets = Targets(engine.settings, run)
        self.job_seconds = 0.0

    def carry_on(self) -> BackupResult:
        """Go on from wherever the journal says this run is."""
        point = self.repository.of_task(self.run.uuid, self.run.point, self.run.task_id)
        if point is None:
            point = self._commit_or_undo()
        # From here on nothing is undone: the point is there.
        self.run.phase = "committed"
        self.run.error = ""
        self.engine.journal.write(self.run)
        try:
            settle(self.engine, self.run, self.repository, point)
        except VirtvaultError as error:
            log.warning("point %s is committed, old bitmaps stay for now: %s", point.id, error)
        return result(point, self.job_seconds)

    def _commit_or_undo(self) -> Point:
        undo = Undo(self.engine, self.run)
        try:
            if self.run.phase not in ("copying", "copied"):
                if self.run.targets:
                    undo.all()  # what an earlier worker had begun of it
                self._begin()
            elif self.run.error:
                raise WorkFailed(f"The backup had failed before: {self.run.error}")
            return self._finish()
        except Detached:
            log.info("task %s: detached in phase %s", self.run.task_id, self.run.phase)
            raise
        except BaseException as error:
            # Durable before anything is undone: should that fail or be killed, what is left is
            # known to be nobody's work in progress.
            self.run.error = str(error) or type(error).__name__
            if self.run.phase != "planned":
                self.engine.journal.write(self.run)
            try:
                undo.all()
            except VirtvaultError as later:
                # libvirt is away, say. The worker's housekeeping tries again.
                log.error("task %s: not all is undone yet: %s", self.run.task_id, later)
            raise

    # -- the story ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Up to the jobs' start: plan, open targets, new bitmaps, the instant, jobs."""
        self.ties.step("preparing")
        self.ties.check(self.engine.journal)
        monitor = self.engine.hypervisor.monitor(self.engine.hypervisor.domain(self.run.uuid))
        _require_isolation(monitor)
        xml = monitor.xml()
        chosen, skipped = disk_view.choose(
            disk_view.discover(monitor, xml), self.request.disks, self.run.domain
        )
        if not chosen:
            raise NothingToBackUp(
                f"Domain {self.run.domain} has no disk that can be backed up"
                + "".join(f"; {t}: {why}" for t, why in skipped.items())
                + ".",
                "`virtvault disks` shows them.",
            )
        plans = {disk.target: self._plan(disk) for disk in chosen}
        self.run.phase, self.run.error, self.run.draft = "planned", "", {}
        self.run.targets = [disk.target for disk in chosen]
        self.engine.journal.write(self.run)
        self.repository.begin(self.run.uuid, self.run.point, xml)
        self.targets.open(chosen, plans, xml)

        self.run.phase = "standing"
        self.run.was_running = monitor.execute("query-status")["running"]
        self.engine.journal.write(self.run)
        for disk in chosen:
            names = self._names(disk)
            isolation.add_nbd(monitor, names.image, self.targets.image(disk.target))
            isolation.add_nbd(monitor, names.scratch, self.targets.scratch(disk.target))
        self._add_new_bitmaps(monitor, chosen)
        for disk in chosen:
            isolation.add_filter(monitor, disk, self._names(disk), self.settings.cbw_timeout)

        self.run.phase = "instant"
        self.engine.journal.write(self.run)
        self.ties.step("instant")
        taken = self._take_instant(monitor, chosen)
        chosen, plans = self._look_again(monitor, chosen, plans)
        self.run.draft = {
            "instant": taken.at,
            "consistency": "agent-frozen" if taken.frozen else "crash-consistent",
            "paused_ms": taken.paused_ms,
            "frozen_ms": taken.frozen_ms,
            "notes": list(taken.notes),
            "skipped": skipped,
            "disks": [draft_disk(disk, plans[disk.target], self.run.bitmap) for disk in chosen],
            "qemu": monitor.execute("query-version")["qemu"],
            "jobs_started": time.time(),
        }
        for disk in chosen:
            isolation.add_snapshot(monitor, disk, self._names(disk), plans[disk.target].sources)
        self._start_jobs(monitor, chosen, plans)
        self.run.phase = "copying"
        self.engine.journal.write(self.run)

    def _finish(self) -> Point:
        """From running jobs to a published point, by the worker that began or by a later one."""
        if self.run.phase == "copying":
            self.ties.step("copying", self.run.draft["instant"])
            monitor = self.engine.hypervisor.monitor(self.engine.hypervisor.domain(self.run.uuid))
            try:
                done = jobs.follow(monitor, self._jobs(), self.engine.pace, self._sample)
            finally:
                monitor.close()
            self.job_seconds = max(0.0, time.time() - self.run.draft["jobs_started"])
            for disk in self.run.draft["disks"]:
                disk["transferred"] = done[disk["target"]]
            self.targets.flush()
            # Before the jobs are dismissed: from here on their good end is known to us.
            self.run.phase = "copied"
            self.engine.journal.write(self.run)
        self.ties.step("closing")
        self.targets.close()
        Undo(self.engine, self.run).in_qemu(keep_bitmap=True)
        self.ties.step("committing")
        point = complete(self.run, self.repository, self.settings)
        self.repository.commit(point)
        return point

    # -- its steps ----------------------------------------------------------------------------

    def _plan(self, disk: Disk) -> DiskPlan:
        return decide(
            disk,
            self.request.sync,
            self.repository.id,
            self.repository.parents(self.run.uuid, disk.target),
        )

    def _look_again(
        self, monitor: LibvirtMonitor, chosen: list[Disk], plans: dict[str, DiskPlan]
    ) -> tuple[list[Disk], dict[str, DiskPlan]]:
        """The disks and plans as they are now, after the instant.

        A snapshot taken between plan and instant has put an overlay on top, with an empty bitmap
        of the parent's name: what the guest wrote by then is in bitmaps the plan did not know.

        :raises WorkFailed: the disks changed so that the images made for them do not fit.
        """
        found = {d.target: d for d in disk_view.discover(monitor, monitor.xml())}
        now_there = [found[d.target] for d in chosen if d.target in found]
        fresh = {
            d.target: self._plan(d) if plans[d.target].parent else plans[d.target]
            for d in now_there
        }
        if len(now_there) != len(chosen) or any(
            plan.parent != plans[target].parent for target, plan in fresh.items()
        ):
            raise WorkFailed(
                f"The disks of domain {self.run.domain} were changed while the backup began.",
                "Back up again.",
            )
        return now_there, fresh

    def _add_new_bitmaps(self, monitor: LibvirtMonitor, chosen: list[Disk]) -> None:
        """Before the instant: from here on each disk's new bitmap misses nothing."""
        monitor.execute(
            "transaction",
            actions=[
                {
                    "type": "block-dirty-bitmap-add",
                    "data": {
                        "node": disk.node,
                        "name": self.run.bitmap,
                        "persistent": disk.persistent,
                    },
                }
                for disk in chosen
            ],
        )

    def _take_instant(self, monitor: LibvirtMonitor, chosen: list[Disk]) -> instant.Instant:
        def swap() -> None:
            for disk in chosen:
                isolation.swap_in(monitor, disk, self._names(disk))

        return instant.take(
            monitor,
            self.settings,
            freeze=self.request.freeze,
            # One disk's swap is an instant in itself.
            stop=len(chosen) > 1,
            swap=swap,
        )

    def _start_jobs(
        self, monitor: LibvirtMonitor, chosen: list[Disk], plans: dict[str, DiskPlan]
    ) -> None:
        actions = []
        for disk in chosen:
            names = self._names(disk)
            changed = (
                {"sync": "bitmap", "bitmap": isolation.CHANGED, "bitmap-mode": "never"}
                if plans[disk.target].parent
                else {"sync": "full"}
            )
            actions.append(
                {
                    "type": "blockdev-backup",
                    "data": {
                        "job-id": names.job,
                        "device": names.snapshot,
                        "target": names.image,
                        "speed": self.request.speed,
                        "auto-dismiss": False,
                        # Larger and more parallel requests than the default: half the time.
                        "x-perf": {"max-workers": 16, "max-chunk": 4 * 2**20},
                        **changed,
                    },
                }
            )
        # Started together, but not `grouped`: there QEMU itself cancels the others when one fails,
        # and waits for them in its main loop; behind a stalled target the guest would stand.
        monitor.execute("transaction", actions=actions)

    def _sample(self, disks: tuple[DiskProgress, ...]) -> None:
        self.ties.sample(disks)
        self.ties.check(self.engine.journal)

    # -- small things -------------------------------------------------------------------------

    def _names(self, disk: Disk) -> Names:
        return Names(self.tag, disk.target)

    def _jobs(self) -> dict[str, str]:
        return {Names(self.tag, d["target"]).job: d["target"] for d in self.run.draft["disks"]}


def _require_isolation(monitor: LibvirtMonitor) -> None:
    """copy-before-write got ``on-cbw-error`` in QEMU 7.1."""
    qemu = monitor.execute("query-version")["qemu"]
    if (qemu["major"], qemu["minor"]) < (7, 1):
        raise NotSupported(
            f"Domain {monitor.name} runs on QEMU {qemu['major']}.{qemu['minor']}; setting the "
            "guest apart from the backup needs 7.1.",
            "Restart the domain on a newer QEMU.",
        )


def _clear_away(engine: Engine, uuid: str) -> None:
    """Undo what dead runs left of this domain (we hold it: none of them is alive).

    :raises DomainBusy: one of them has jobs that its own task will come back for.
    """
    for run in engine.journal.all():
        if run.uuid != uuid or run.kind != "backup":
            continue
        if run.phase in ("copying", "copied", "committed") and not run.error:
            raise DomainBusy(
                f"Domain {run.domain} is being backed up by task {run.task_id}, which its worker "
                "is about to take up again.",
                f"Wait for it, or stop it with `virtvault cancel {run.task_id}`.",
            )
        Undo(engine, run).all()


def _mark_failed(engine: Engine, task_id: str, error: BaseException) -> None:
    """Say in the journal, where it still has the run, that the task has failed.

    The repository or libvirt may not even have been reached: then the run is taken up by
    :func:`workers.recovery.tidy` when they are back, not by this task any more.
    """
    run = engine.journal.read(task_id)
    if run is not None and run.phase != "committed" and not run.error:
        run.error = str(error) or type(error).__name__
        engine.journal.write(run)


def _committed_before(repository: DirectoryRepository, uuid: str, task_id: str) -> Point | None:
    """The point this very task committed in an earlier delivery."""
    ending = tag_of(task_id)
    for point in repository.points(uuid):
        if point.id.endswith(ending) and point.task_id == task_id:
            return point
    return None


def _point_id(task_id: str) -> str:
    """Sorts by time; ends in a digest of the task, so that a second delivery finds it."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{tag_of(task_id)}"
