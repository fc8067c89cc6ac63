"""The jobs of this host, ours and others', and what an operator may do to them.

Asked of QEMU each time: what runs is known by QEMU alone, and there is no state here to be wrong.
A run is steered as a whole by its task id; any one job by its id and its domain's uuid.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from virtvault.errors import (
    DomainStopped,
    InvalidRequest,
    MonitorError,
    NotReachable,
    UnknownDomain,
    UnknownTask,
    VirtvaultError,
)
from virtvault.models import JobInfo
from workers.capture.offline import Offline
from workers.capture.offline import daemon_of as offline_daemon
from workers.engine import Engine, tag_of
from workers.journal import Run
from workers.monitor import Monitor
from workers.restore import daemon_of as restore_daemon
from workers.storage_daemon import StorageDaemon

__all__ = [
    "block_jobs",
    "cancel",
    "cancel_job",
    "control_monitor",
    "pause",
    "resume",
    "set_speed",
    "task_of",
    "wish_cancelled",
]

# QEMU's job states in which a job can be paused, resumed, cancelled and given a speed.
LIVE = ("created", "running", "paused", "ready", "standby")
# The phases of a run before its jobs are started.
PREPARING = ("planned", "standing", "instant")
# libvirt's names of its own jobs: what it does, and the disk.
LIBVIRTS = re.compile(r"(commit|pull|copy|backup)-([^-]+)-libvirt-\d+-")
LIBVIRTS_WORD = {
    "commit": "blockcommit",
    "pull": "blockpull",
    "copy": "blockcopy",
    "backup": "backup-begin",
}
CANCELLING_MEANS = {
    "commit": "The overlay stays in use and nothing is lost; the commit has to be begun again.",
    "stream": "The backing chain stays as it is; the pull has to be begun again.",
    "mirror": "The copy stays incomplete; where it is part of a migration, that fails.",
    "backup": "Its target stays incomplete.",
}


@dataclass(frozen=True)
class _Job:
    """One job as QEMU lists it. ``block``: query-block-jobs has it, so it can have a speed."""

    id: str
    type: str
    status: str
    done: int
    total: int
    speed: int
    error: str
    paused: bool
    block: bool

    @property
    def live(self) -> bool:
        return self.status in LIVE


@dataclass(frozen=True)
class _Place:
    """One process that runs jobs: a domain's QEMU, or the storage daemon of a run."""

    domain: str
    uuid: str
    open: Callable[[], Monitor]


def block_jobs(engine: Engine) -> list[JobInfo]:
    """All jobs of this host's active domains and of the storage daemons of our runs.

    A domain whose QEMU does not answer is listed with one job of status ``unknown``; it keeps
    nobody from seeing the others.
    """
    host = engine.settings.host
    runs = engine.journal.all()
    owners = {tag_of(run.task_id): run.task_id for run in runs}

    def ask(place: _Place) -> list[JobInfo]:
        try:
            with contextlib.closing(place.open()) as monitor:
                jobs = _listed(monitor).values()
        except NotReachable as error:
            return [
                JobInfo(
                    *(host, place.domain, "?", "?", "unknown", 0, 0, 0),
                    uuid=place.uuid,
                    error=error.message,
                )
            ]
        except VirtvaultError:
            return []  # it ended meanwhile, and its jobs with it
        return [
            JobInfo(
                host=host,
                domain=place.domain,
                job=job.id,
                type=job.type,
                status=job.status,
                done=job.done,
                total=job.total,
                speed=job.speed,
                task_id=owners.get(_tag(job.id), ""),
                uuid=place.uuid,
                error=job.error,
            )
            for job in jobs
        ]

    with ThreadPoolExecutor(8) as pool:
        return [job for jobs in pool.map(ask, _places(engine, runs)) for job in jobs]


def control_monitor(engine: Engine, run: Run) -> Monitor:
    """A monitor to where the jobs of ``run`` are; the caller closes it.

    :raises DomainStopped: neither the domain nor the run's storage daemon is there.
    """
    daemon = _daemon_of(engine, run)
    if daemon is not None:
        return daemon.monitor(engine.settings.qmp_timeout, "control")
    return engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))


def wish_cancelled(engine: Engine, task_id: str) -> None:
    """Ask a run to cancel, whichever worker has it or will have it.

    :raises InvalidRequest: that cannot be a task's id.
    """
    wish = engine.journal.wishes(task_id)
    wish.parent.mkdir(parents=True, exist_ok=True)
    wish.touch()


def cancel(engine: Engine, task_id: str) -> str:
    """Cancel a run: a paused or stalled one too, and one that no worker holds at the moment.

    A queued one ends as it starts; one whose worker is down, at its worker's return.
    """
    wish_cancelled(engine, task_id)
    run = engine.journal.read(task_id)
    if run is None:
        return f"Task {task_id} is cancelled before it begins."
    # The wish is what cancels; ending the jobs wakes the follower at once.
    with contextlib.suppress(VirtvaultError), _monitor(engine, run) as monitor:
        for job in _of_run(monitor, run):
            if job.live:
                with contextlib.suppress(MonitorError):  # it is just concluding
                    monitor.execute("block-job-cancel", device=job.id, force=True)
    if run.phase in ("copied", "committed"):
        return (
            f"Task {task_id} ({run.kind} of {run.domain}) has copied everything and is about to "
            "end: the cancel may come too late."
        )
    return f"Task {task_id} ({run.kind} of {run.domain}) is being cancelled."


def task_of(engine: Engine, job_id: str) -> str:
    """The task whose job that is: a point is all its disks or nothing. Empty: none of ours."""
    for run in engine.journal.all():
        if tag_of(run.task_id) == _tag(job_id):
            return run.task_id
    return ""


def cancel_job(engine: Engine, job_id: str, uuid: str, *, others: bool = False) -> str:
    """Cancel one job of a domain that is not of a run of ours.

    :param others: whether that is really meant.
    :raises InvalidRequest: ``others`` is not set, or the job has ended.
    :raises UnknownTask: the domain has no such job (any more).
    """
    with _one_job(engine, job_id, uuid) as (monitor, job, where):
        _require_live([job], where, "cancel")
        if not others:
            raise InvalidRequest(
                f"{_capital(where)} is not virtvault's: it seems to be {_whose(job)}.",
                CANCELLING_MEANS.get(job.type, "Its work stays unfinished.")
                + " Repeat with --yes to cancel it all the same.",
            )
        if job.block:
            monitor.execute("block-job-cancel", device=job.id, force=True)
        else:
            monitor.execute("job-cancel", id=job.id)
    return f"{_capital(where)} is being cancelled."


def pause(engine: Engine, name: str, uuid: str = "") -> str:
    """Pause the jobs of the task ``name``, or the one job ``name`` of the domain ``uuid``.

    :raises UnknownTask: there is no such task or job here.
    :raises InvalidRequest: there is nothing to pause: not started yet, or all has ended.
    """

    def one(monitor: Monitor, job: _Job) -> None:
        if job.block:
            monitor.execute("block-job-pause", device=job.id)
        else:
            monitor.execute("job-pause", id=job.id)

    return _steer(engine, name, uuid, "pause", "paused", one, lambda job: job.paused)


def resume(engine: Engine, name: str, uuid: str = "") -> str:
    """Let paused jobs go on; parameters and errors are those of :func:`pause`."""

    def one(monitor: Monitor, job: _Job) -> None:
        if job.block:
            monitor.execute("block-job-resume", device=job.id)
        else:
            monitor.execute("job-resume", id=job.id)

    return _steer(engine, name, uuid, "resume", "running again", one, lambda job: not job.paused)


def set_speed(engine: Engine, rate: int, name: str, uuid: str = "") -> str:
    """Limit jobs to ``rate`` bytes per second each, 0 for no limit; else as :func:`pause`."""
    if rate < 0:
        raise InvalidRequest(f"speed: {rate} is negative.", "0 is no limit.")

    def one(monitor: Monitor, job: _Job) -> None:
        if not job.block:
            raise InvalidRequest(
                f"Job {job.id} ({job.type}) is no block job and has no speed limit.",
                "Pause it instead.",
            )
        monitor.execute("block-job-set-speed", device=job.id, speed=rate)

    limit = f"limited to {_rate(rate)}" if rate else "without a speed limit"
    return _steer(engine, name, uuid, "set the speed of", limit, one, lambda job: False)


def _steer(
    engine: Engine,
    name: str,
    uuid: str,
    verb: str,
    done: str,
    one: Callable[[Monitor, _Job], None],
    so_already: Callable[[_Job], bool],
) -> str:
    """Do ``one`` to each job meant that is live and not so already; gives the sentence."""
    if uuid:
        with _one_job(engine, name, uuid) as (monitor, job, where):
            _require_live([job], where, verb)
            changed = _change(monitor, [job], one, so_already)
        return f"{_capital(where)} {'is' if changed else 'was already'} {done}."
    run = engine.journal.read(name)
    if run is None:
        raise UnknownTask(
            f"Task {name} has no block jobs on {engine.settings.host}.",
            "It is queued or has ended; `virtvault jobs` lists what runs.",
        )
    whole = f"task {name} ({run.kind} of {run.domain})"
    if run.phase in PREPARING:
        raise InvalidRequest(
            f"{_capital(whole)} is still preparing: its block jobs have not been started.",
            "Try again in a moment: `virtvault jobs` lists them once they run. To begin at a "
            "certain speed, cancel it and give --speed.",
        )
    with _monitor(engine, run) as monitor:
        jobs = _of_run(monitor, run)
        _require_live(jobs, whole, verb)
        changed = _change(monitor, [job for job in jobs if job.live], one, so_already)
    if not changed:
        return f"The block jobs of {whole} were already {done}."
    return f"{changed} block job{'s of' if changed > 1 else ' of'} {whole} " + (
        f"are {done}." if changed > 1 else f"is {done}."
    )


def _change(
    monitor: Monitor,
    jobs: Iterable[_Job],
    one: Callable[[Monitor, _Job], None],
    so_already: Callable[[_Job], bool],
) -> int:
    """Do ``one`` to each job that is not so already; gives to how many."""
    changed = 0
    for job in jobs:
        if so_already(job):
            continue
        try:
            one(monitor, job)
        except MonitorError:
            # Refused: it may have ended, or become so, since it was listed.
            now = _listed(monitor).get(job.id)
            if now is not None and now.live and not so_already(now):
                raise
        else:
            changed += 1
    return changed


def _require_live(jobs: Iterable[_Job], whose: str, verb: str) -> None:
    """:raises InvalidRequest: none of the jobs can be steered any more."""
    jobs = list(jobs)
    if any(job.live for job in jobs):
        return
    how = "; ".join(job.error for job in jobs if job.error)
    raise InvalidRequest(
        f"{_capital(whose)} has no job left to {verb}: "
        + (f"ended with {how}." if how else "all are through." if jobs else "none is listed."),
        "`virtvault jobs` lists what runs.",
    )


# -- where jobs are ---------------------------------------------------------------------------


def _daemon_of(engine: Engine, run: Run) -> StorageDaemon | None:
    """The storage daemon that runs the jobs of ``run``; None where its domain's QEMU does."""
    if run.kind == "restore":
        return restore_daemon(engine, run.task_id)
    return offline_daemon(engine, run) if run.way == Offline.name else None


def _places(engine: Engine, runs: Iterable[Run]) -> list[_Place]:
    def in_domain(uuid: str) -> Callable[[], Monitor]:
        return lambda: engine.hypervisor.monitor(engine.hypervisor.domain(uuid))

    def in_daemon(run: Run) -> Callable[[], Monitor]:
        return lambda: control_monitor(engine, run)

    return [
        _Place(domain.name, domain.uuid, in_domain(domain.uuid))
        for domain in engine.hypervisor.domains()
        if domain.state != "shut off"
    ] + [
        _Place(run.domain, run.uuid, in_daemon(run))
        for run in runs
        if _daemon_of(engine, run) is not None
    ]


@contextmanager
def _monitor(engine: Engine, run: Run) -> Iterator[Monitor]:
    with contextlib.closing(control_monitor(engine, run)) as monitor:
        yield monitor


@contextmanager
def _one_job(engine: Engine, job_id: str, uuid: str) -> Iterator[tuple[Monitor, _Job, str]]:
    """The job of that id on a domain, in QEMU or in one of our daemons, and how to call it.

    :raises UnknownTask: there is none (any more).
    """
    for place in _places(engine, engine.journal.all()):
        if place.uuid != uuid:
            continue
        try:
            monitor = place.open()
        except (DomainStopped, UnknownDomain):
            continue
        with contextlib.closing(monitor):
            job = _listed(monitor).get(job_id)
            if job is not None:
                yield monitor, job, f"block job {job_id} of domain {place.domain}"
                return
    raise UnknownTask(
        f"There is no block job {job_id} on {engine.settings.host} (any more).",
        "`virtvault jobs` lists what runs.",
    )


def _of_run(monitor: Monitor, run: Run) -> list[_Job]:
    tag = tag_of(run.task_id)
    return [job for job in _listed(monitor).values() if _tag(job.id) == tag]


def _listed(monitor: Monitor) -> dict[str, _Job]:
    """Every job by id: the block jobs, and what only query-jobs has (create, snapshot-save, …)."""
    found = {
        entry["device"]: _Job(
            id=entry["device"],
            type=entry["type"],
            status=entry["status"],
            done=entry["offset"],
            total=entry["len"],
            speed=entry["speed"],
            error=entry.get("error", ""),
            paused=entry["paused"],
            block=True,
        )
        for entry in monitor.execute("query-block-jobs")
    }
    try:
        every = monitor.execute("query-jobs")
    except MonitorError:
        every = []  # before QEMU 3.0, where all jobs are block jobs
    for entry in every:
        if entry["id"] not in found:
            found[entry["id"]] = _Job(
                id=entry["id"],
                type=entry["type"],
                status=entry["status"],
                done=entry["current-progress"],
                total=entry["total-progress"],
                speed=0,
                error=entry.get("error", ""),
                paused=entry["status"] in ("paused", "standby"),
                block=False,
            )
    return found


# -- words ------------------------------------------------------------------------------------


def _tag(job_id: str) -> str:
    """What our own job ids have in the middle; empty for others'."""
    prefix, _, rest = job_id.partition("-")
    return rest.partition("-")[0] if prefix == "virtvault" else ""


def _whose(job: _Job) -> str:
    if _tag(job.id):
        return "another virtvault's, or that of a task whose record was lost"
    if libvirts := LIBVIRTS.match(job.id):
        return f"libvirt's {LIBVIRTS_WORD[libvirts[1]]} of disk {libvirts[2]}"
    if job.id.startswith("drive-"):
        return "libvirt's (a block job, or the storage copy of a migration)"
    return f"a user's or another tool's {job.type}"


def _rate(rate: int) -> str:
    return f"{rate / 2**20:.1f} MiB/s" if rate >= 2**20 else f"{rate} bytes/s"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
