"""One backup of one domain, read from top to bottom.

Nothing is published before all of it is durable, nothing is dropped before its replacement is,
and a kill at any line is mended by :func:`workers.recovery` from the journal.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime

from virtvault import schemas
from virtvault.errors import (
    DomainBusy,
    NotReachable,
    RepositoryUnusable,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import BackupRequest, BackupResult, DiskProgress, ExportResult, Point
from workers import digests, jobs, nvram
from workers.capture.begin import Begin
from workers.capture.choice import again, let_run
from workers.capture.way import Capture
from workers.disks import Disk
from workers.engine import Engine, Ties, now, tag_of
from workers.export import Export
from workers.images import is_whole_file
from workers.isolation import Names
from workers.jobs import Detached
from workers.journal import HeldElsewhere, Run
from workers.plan import DiskPlan, FullWanted, decide
from workers.record import complete, result
from workers.recovery import Undo, settle
from workers.repository import DirectoryRepository, open_repository
from workers.targets import Targets

__all__ = ["Duplicate", "backup"]

log = logging.getLogger(__name__)

# Seconds a domain may be held by what is no run before that counts as busy.
MOMENT = 10.0


class Duplicate(Exception):
    """Another delivery of the same task is at work on it: step aside."""


def backup(engine: Engine, request: BackupRequest, ties: Ties) -> BackupResult | ExportResult:
    """Back up a domain, or finish what an earlier worker began of this task.

    With ``sync=none`` nothing is stored: the disks are exported until somebody closes that.

    :raises VirtvaultError: nothing was published, the guest is as before.
    :raises Detached: the worker is stopping; the journal has the run.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        done = _backup(engine, request, ties)
    except (Detached, Duplicate):
        raise
    except DomainBusy:
        # Of this run nothing was begun now; what an earlier worker began of it stays as it is.
        engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
        raise
    except BaseException as error:
        _mark_failed(engine, ties.task_id, error)
        engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
        raise
    engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
    return done


def _backup(engine: Engine, request: BackupRequest, ties: Ties) -> BackupResult | ExportResult:
    exports = request.sync == "none"
    repository = None if exports else open_repository(engine.settings, request.repository)
    domain = engine.hypervisor.domain(request.domain)
    name, uuid = domain.name(), domain.UUIDString()
    ties.domain = name
    if done := _done_before(engine, repository, uuid, ties.task_id):
        return done
    until = time.monotonic() + MOMENT
    while True:
        try:
            return _holding(engine, request, ties, repository, name, uuid)
        except HeldElsewhere as held:
            if held.holder == ties.task_id:
                raise Duplicate from held
            holder = engine.journal.read(held.holder) if held.holder else None
            # Not a run that the journal has: housekeeping, or one in its first moment.
            if holder is not None or time.monotonic() > until:
                raise _busy(name, holder, held) from held
            time.sleep(0.1)


def _holding(
    engine: Engine,
    request: BackupRequest,
    ties: Ties,
    repository: DirectoryRepository | None,
    name: str,
    uuid: str,
) -> BackupResult | ExportResult:
    """Begin or carry on the run, holding its domain.

    :raises HeldElsewhere: somebody else holds it.
    """
    with engine.journal.hold(uuid, ties.task_id):
        run = engine.journal.read(ties.task_id)
        if run is None:
            _clear_away(engine, uuid)
            run = Run(
                task_id=ties.task_id,
                kind="backup",
                request=schemas.dump(request),
                domain=name,
                uuid=uuid,
                repository=repository.name if repository else "",
                point=_point_id(ties.task_id),
                started=now(),
            )
        if repository is None:
            export = Export(engine, request, ties, run)
            if kept := engine.journal.finished(ties.task_id):
                # Its worker died as it closed it.
                return export.closed(schemas.load(ExportResult, kept))
            return export.carry_on()
        run.repository_id = repository.id
        run.partial = str(repository.partial(uuid, run.point))
        return Backup(engine, request, ties, repository, run).carry_on()


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
        self.targets = Targets(engine.settings, run)
        self.job_seconds = 0.0
        self.capture: Capture | None = None

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
                if self.run.phase != "planned" or self.run.way or self.run.unstarted:
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
        """Up to the jobs' start."""
        self.capture = Begin(
            self.engine,
            self.request,
            self.ties,
            self.run,
            self.targets,
            plan=self._plan,
            store=self._store,
            alone=lambda: self.repository.alone(self.run.uuid, self.run.task_id),
            under_way="copying",
        ).go()

    def _finish(self) -> Point:
        """From running jobs to a published point, by the worker that began or by a later one."""
        if self.run.phase == "copying":
            self.ties.step("copying", self.run.draft["instant"])
            # The one that began it has watched since; a later worker's begins now.
            capture = self.capture or again(self.engine, self.run, self.targets)
            try:
                let_run(self.engine, self.run)
                done = self._follow(capture)
            finally:
                capture.close()
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
        proofs = self._prove()
        self.ties.step("committing")
        self.ties.check(self.engine.journal)
        point = complete(self.run, self.repository, self.settings, proofs)
        self.repository.commit(point)
        return point

    # -- its steps ----------------------------------------------------------------------------

    def _prove(self) -> dict[str, str]:
        """Read back what the repository has of each disk and keep digests of it; their digests."""
        self.ties.step("hashing")
        partial = self.repository.partial(self.run.uuid, self.run.point)
        found = {}
        for disk in self.run.draft["disks"]:

            def sample(done: int, total: int, target: str = disk["target"]) -> None:
                self.ties.sample((DiskProgress(target, done, total, "running"),))
                self.ties.check(self.engine.journal)

            computed = digests.compute(
                [partial / disk["file"]],
                self.settings.runtime_dir,
                whole=disk["sync"] == "full",
                sample=sample,
            )
            found[disk["target"]] = digests.store(partial, disk["target"], computed)
        return found

    def _follow(self, capture: Capture) -> dict[str, int]:
        """Follow the jobs to their end; the bytes each went through, by target."""

        def sample(disks: tuple[DiskProgress, ...]) -> None:
            self.ties.sample(disks)
            self.ties.check(self.engine.journal)
            with contextlib.suppress(NotReachable):  # libvirtd restarts: looked at again below
                capture.check()

        done = jobs.follow(capture.monitor(), self._jobs(), self.engine.pace, sample)
        until = time.monotonic() + self.settings.stall_seconds
        while True:
            try:
                capture.check()
            except NotReachable:
                if time.monotonic() > until:
                    raise
                sample(())
                time.sleep(self.settings.poll_max)
            else:
                return done

    def _store(self, xml: str) -> list[str]:
        partial = self.repository.begin(self.run.uuid, self.run.point, xml)
        try:
            return nvram.keep(xml, partial)
        except OSError as error:
            raise RepositoryUnusable(
                f"{partial / nvram.FILE} cannot be written: {error.strerror}.",
                "Make room in the repository, or mend its permissions.",
            ) from error

    def _plan(self, capture: Capture, disk: Disk) -> DiskPlan:
        plan = decide(
            disk,
            self.request.sync,
            self.repository.id,
            self.repository.parents(self.run.uuid, disk.target),
            bitmap=self.request.bitmap,
            wanted=FullWanted(self.request.full_points, self.request.full_days, datetime.now(UTC)),
        )
        if plan.parent and (reason := capture.veto(disk, plan)):
            plan = DiskPlan("full", reason=reason)
        if plan.sync == "top" and not all(is_whole_file(i.filename) for i in disk.layers[1:]):
            reason = "its backing image is not one file, so it could not be told if it changed"
            plan = DiskPlan("full", reason=reason)
        return replace(plan, counts=plan.counts and capture.counts(disk))

    # -- small things -------------------------------------------------------------------------

    def _jobs(self) -> dict[str, str]:
        return {Names(self.run.tag, d["target"]).job: d["target"] for d in self.run.draft["disks"]}


def _clear_away(engine: Engine, uuid: str) -> None:
    """Undo what dead runs left of this domain (we hold it: none of them is alive).

    :raises DomainBusy: one of them has jobs that its own task will come back for.
    """
    for run in engine.journal.all():
        if run.uuid != uuid or run.kind != "backup":
            continue
        if run.phase == "committed":
            # Its point is there. What it could not tidy up since is ours from now on.
            run.superseded = True
            engine.journal.write(run)
        elif run.phase in ("copying", "copied", "open") and not run.error:
            raise DomainBusy(
                f"Domain {run.domain} is being backed up by task {run.task_id}, which its worker "
                "is about to take up again.",
                f"Wait for it, or stop it with `virtvault cancel {run.task_id}`.",
            )
        elif run.phase != "undone":
            try:
                Undo(engine, run).all()
            except RepositoryUnusable as error:
                # QEMU is as it was; files in a repository that is away wait for it.
                log.warning("task %s: %s", run.task_id, error)


def _mark_failed(engine: Engine, task_id: str, error: BaseException) -> None:
    """Say in the journal, where it still has the run, that the task has failed.

    The repository or libvirt may not even have been reached: then the run is taken up by
    :func:`workers.recovery.tidy` when they are back, not by this task any more.
    """
    run = engine.journal.read(task_id)
    if run is not None and run.phase != "committed" and not run.error:
        run.error = str(error) or type(error).__name__
        engine.journal.write(run)


def _done_before(
    engine: Engine, repository: DirectoryRepository | None, uuid: str, task_id: str
) -> BackupResult | ExportResult | None:
    """What this very task did in an earlier delivery."""
    if engine.journal.read(task_id) is not None:
        return None
    if repository is None:
        kept = engine.journal.finished(task_id)
        return schemas.load(ExportResult, kept) if kept else None
    ending = tag_of(task_id)
    for point in repository.points(uuid):
        if point.id.endswith(ending) and point.task_id == task_id:
            return result(point, 0.0)
    return None


def _busy(name: str, run: Run | None, held: HeldElsewhere) -> DomainBusy:
    """Name what is under way on the domain: its jobs exclude others on the same disks."""
    if run is None:
        return DomainBusy(f"Domain {name} is held by {held.holder} now.", "Try again in a moment.")
    if run.kind == "restore":
        return DomainBusy(
            f"Domain {name} is being restored ({run.way}, since {run.started}) by task "
            f"{held.holder}.",
            held.mend,
        )
    exported = run.request.get("sync") == "none"
    what = "exported" if exported else "backed up"
    names = [] if exported else [Names(run.tag, target).job for target in run.targets]
    jobs_of_it = ", ".join(names)
    return DomainBusy(
        f"Domain {name} is being {what} (sync {run.request.get('sync')}, since {run.started}) by "
        f"task {held.holder}" + (f", jobs {jobs_of_it}." if jobs_of_it else "."),
        held.mend,
    )


def _point_id(task_id: str) -> str:
    """Sorts by time; ends in a digest of the task, so that a second delivery finds it."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{tag_of(task_id)}"
