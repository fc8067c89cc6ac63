"""The jobs that run on this host, ours and others', and where.

Asked of QEMU each time: what runs is known by QEMU alone, and there is no state here to be wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from virtvault.errors import (
    DomainStopped,
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
from workers.storage_daemon import DAEMONS, StorageDaemon, daemon_of

__all__ = ["Job", "block_jobs", "control_monitor", "listed", "of_run", "one_job", "tag_in"]

# QEMU's states in which a job can be paused, resumed, cancelled and given a speed.
LIVE = ("created", "running", "paused", "ready", "standby")
# The way of a restore whose jobs are in the new domain's QEMU for as long as that runs.
INSTANT = "instant"


@dataclass(frozen=True)
class Job:
    """One job as QEMU lists it.

    ``done`` of ``total`` and ``speed`` as in :class:`virtvault.models.JobInfo`. ``paused``: it is
    to pause, and has done so where ``status`` says so too. ``block``: query-block-jobs has it, so
    that it can have a speed.
    """

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
        """Whether it takes commands: it has begun and has not come to its end."""
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
                jobs = listed(monitor).values()
        except NotReachable as error:
            unknown = ("?", "?", "unknown", 0, 0, 0, "", place.uuid, error.message)
            return [JobInfo(host, place.domain, *unknown)]
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
                task_id=owners.get(tag_in(job.id), ""),
                uuid=place.uuid,
                error=job.error,
            )
            for job in jobs
        ]

    with ThreadPoolExecutor(8) as pool:
        return [job for jobs in pool.map(ask, _places(engine, runs)) for job in jobs]


def control_monitor(engine: Engine, run: Run) -> Monitor:
    """A monitor to where the jobs of ``run`` are, beside its follower's; the caller closes it.

    :raises DomainStopped: neither the domain nor the run's storage daemon is there.
    """
    daemon = _daemon_of(engine, run)
    if daemon is not None:
        return daemon.monitor(engine.settings.qmp_timeout, "control")
    return engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))


@contextmanager
def one_job(engine: Engine, job_id: str, uuid: str) -> Iterator[tuple[Monitor, Job, str]]:
    """The job of that id on a domain, in QEMU or in a daemon of ours, and the domain's name.

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
            job = listed(monitor).get(job_id)
            if job is not None:
                yield monitor, job, place.domain
                return
    raise UnknownTask(
        f"There is no block job {job_id} on {engine.settings.host} (any more).",
        "`virtvault jobs` lists what runs.",
    )


def of_run(monitor: Monitor, run: Run) -> list[Job]:
    """The jobs of a run of ours."""
    tag = tag_of(run.task_id)
    return [job for job in listed(monitor).values() if tag_in(job.id) == tag]


def listed(monitor: Monitor) -> dict[str, Job]:
    """Every job by id: the block jobs, and what only query-jobs has (create, snapshot-save, …)."""
    found = {
        entry["device"]: Job(
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
            found[entry["id"]] = Job(
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


def tag_in(job_id: str) -> str:
    """What :func:`workers.engine.tag_of` put into a job id of ours; empty in others'."""
    prefix, _, rest = job_id.partition("-")
    return rest.partition("-")[0] if prefix == "virtvault" else ""


def _daemon_of(engine: Engine, run: Run) -> StorageDaemon | None:
    """The storage daemon that runs the jobs of ``run``; None where its domain's QEMU does."""
    if run.way == INSTANT and engine.hypervisor.is_active(run.uuid):
        return None
    if run.kind in DAEMONS:
        return daemon_of(engine.settings.runtime_dir, run.kind, tag_of(run.task_id))
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
