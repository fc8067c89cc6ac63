"""Following block jobs by polling query-block-jobs.

Jobs are started with ``auto-dismiss: false``: a concluded one stays listed, with its error, until
:func:`dismiss`. One that is not listed has vanished: unknown, never success.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from virtvault.errors import JobFailed, JobVanished, MonitorError, NotReachable
from virtvault.models import DiskProgress
from workers.monitor import Monitor

__all__ = ["Detached", "Pace", "cancel", "dismiss", "follow", "listed"]


BROKEN = (
    "the snapshot was given up so that the guest could go on: its scratch image was full, failed "
    "or stalled (see scratch_limit and scratch_dir)"
)


class Detached(BaseException):
    """The worker is stopping: leave the job to QEMU and the run to the next worker.

    Not an Exception, so that nothing on the way takes it for a failure and undoes the run.
    """


@dataclass(frozen=True)
class Pace:
    """Seconds: the poll's shortest and longest interval, and when no progress means dead."""

    shortest: float
    longest: float
    stall: float


def listed(monitor: Monitor) -> dict[str, dict[str, Any]]:
    """query-block-jobs by job id."""
    return {job["device"]: job for job in monitor.execute("query-block-jobs")}


def follow(
    monitor: Monitor,
    jobs: Mapping[str, str],
    pace: Pace,
    sample: Callable[[tuple[DiskProgress, ...]], None],
) -> dict[str, int]:
    """Follow ``jobs`` (job id → disk target) until all have concluded well.

    ``sample`` is called after every poll and may raise to stop following. Returns the bytes each
    job went through, by target.

    :raises JobFailed: one ended with an error, or short of its length; or none moved for
        ``pace.stall`` seconds.
    :raises JobVanished: one is not listed any more.
    """
    interval = pace.shortest
    # By job: one disk's target may stall while the others' go on.
    moved = dict.fromkeys(jobs, time.monotonic())
    before: dict[str, int] = {}
    answered = time.monotonic()
    while True:
        try:
            now = listed(monitor)
        except NotReachable:
            # libvirtd restarts do not touch QEMU: look again, for as long as a stall may last.
            if time.monotonic() - answered > pace.stall:
                raise
            sample(())
            time.sleep(pace.longest)
            continue
        answered = time.monotonic()
        for job in jobs:
            if job not in now:
                raise JobVanished(
                    f"Block job {job} is gone and how it ended is not known.",
                    "Somebody dismissed it or QEMU was restarted; back up again.",
                )
        mine = {target: now[job] for job, target in jobs.items()}
        sample(tuple(_progress(target, job) for target, job in mine.items()))
        ended = {target: job for target, job in mine.items() if job["status"] == "concluded"}
        # At the first failure, whatever the others do: a point is all its disks or nothing.
        _raise_on_error(ended)
        if len(ended) == len(mine):
            return {target: job["offset"] for target, job in mine.items()}
        for job, target in jobs.items():
            entry = now[job]
            stands = entry["status"] in ("paused", "concluded")
            if stands or entry["offset"] != before.get(job):
                moved[job], before[job] = answered, entry["offset"]
            elif answered - moved[job] > pace.stall:
                raise JobFailed(
                    f"Disk {target}: no byte moved for {pace.stall:g} s, its target does not "
                    "answer.",
                    "See to the repository's storage. The next incremental includes everything.",
                )
        monitor.wait(interval)
        interval = min(interval * 1.5, pace.longest)


def cancel(monitor: Monitor, jobs: Mapping[str, str], seconds: float) -> bool:
    """Cancel what still runs of ``jobs`` and wait up to ``seconds``; true when none does.

    ``force`` ends a paused job too.
    """
    until = time.monotonic() + seconds
    asked: set[str] = set()
    while running := [
        job
        for job, entry in listed(monitor).items()
        if job in jobs and entry["status"] != "concluded"
    ]:
        for job in running:
            if job not in asked:
                asked.add(job)
                try:
                    monitor.execute("block-job-cancel", device=job, force=True)
                except MonitorError:
                    asked.discard(job)  # it is just concluding; the next look tells
        if time.monotonic() > until:
            return False
        monitor.wait(0.05)
    return True


def dismiss(monitor: Monitor, jobs: Mapping[str, str]) -> None:
    """Take concluded jobs off QEMU's list."""
    command = f"{monitor.capabilities.job_commands}-dismiss"
    for job in listed(monitor):
        if job in jobs:
            monitor.execute(command, id=job)


def _progress(target: str, job: dict[str, Any]) -> DiskProgress:
    return DiskProgress(target, job["offset"], job["len"], job["status"])


def _raise_on_error(mine: Mapping[str, dict[str, Any]]) -> None:
    errors = {target: job["error"] for target, job in mine.items() if job.get("error")}
    # Name a cause before what may be its consequence.
    causes = {t: e for t, e in errors.items() if "cancel" not in e.lower()} or errors
    # What QEMU says of a snapshot that it gave up for the guest's sake (on-cbw-error).
    causes = {t: BROKEN if e == "Permission denied" else e for t, e in causes.items()}
    if causes:
        raise JobFailed(
            "The copy failed: " + "; ".join(f"disk {t}: {e}" for t, e in causes.items()) + ".",
            "Mend its cause and back up again; nothing that was written is forgotten.",
        )
    for target, job in mine.items():
        if job["offset"] != job["len"]:
            raise JobFailed(
                f"The copy of disk {target} ended at {job['offset']} of {job['len']} bytes: "
                "somebody cancelled it.",
                "Back up again.",
            )
