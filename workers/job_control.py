"""What an operator may do to jobs: pause, resume, speed, cancel.

A run is steered as a whole by its task id, any one job by its id and its domain's uuid. The
``block-job-`` commands are used for block jobs: every QEMU has them, for other jobs there is no
choice.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable

from virtvault.errors import InvalidRequest, MonitorError, UnknownTask, VirtvaultError
from workers import job_listing
from workers.engine import Engine, tag_of
from workers.job_listing import Job, control_monitor, of_run, one_job, tag_in
from workers.monitor import Monitor

__all__ = ["cancel", "cancel_job", "pause", "resume", "set_speed", "task_of", "wish_cancelled"]

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
    with (
        contextlib.suppress(VirtvaultError),
        contextlib.closing(control_monitor(engine, run)) as monitor,
    ):
        for job in of_run(monitor, run):
            if job.live:
                with contextlib.suppress(MonitorError):  # it is just concluding
                    monitor.execute("block-job-cancel", device=job.id, force=True)
    if run.request.get("sync") == "none":
        return f"Task {task_id}: the export of {run.domain} is being closed."
    if run.kind == "serve":
        return f"Task {task_id}: the export of point {run.point} is being closed."
    task = f"Task {task_id} ({run.kind} of {run.domain})"
    if run.phase in ("copied", "committed"):
        return f"{task} has copied everything and is about to end: the cancel may come too late."
    return f"{task} is being cancelled."


def task_of(engine: Engine, job_id: str) -> str:
    """The task whose job that is: a point is all its disks or nothing. Empty: none of ours."""
    for run in engine.journal.all():
        if tag_of(run.task_id) == tag_in(job_id):
            return run.task_id
    return ""


def cancel_job(engine: Engine, job_id: str, uuid: str, *, others: bool = False) -> str:
    """Cancel one job of a domain that is not of a run of ours.

    :param others: whether that is really meant.
    :raises InvalidRequest: ``others`` is not set, or the job has ended.
    :raises UnknownTask: the domain has no such job (any more).
    """
    with one_job(engine, job_id, uuid) as (monitor, job, domain):
        named = f"Block job {job_id} of domain {domain}"
        _require_live([job], named, "cancel")
        if not others:
            raise InvalidRequest(
                f"{named} is not virtvault's: it seems to be {_whose(job)}.",
                CANCELLING_MEANS.get(job.type, "Its work stays unfinished.")
                + " Repeat with --yes to cancel it all the same.",
            )
        if job.block:
            monitor.execute("block-job-cancel", device=job.id, force=True)
        else:
            monitor.execute("job-cancel", id=job.id)
    return f"{named} is being cancelled."


def pause(engine: Engine, name: str, uuid: str = "") -> str:
    """Pause the jobs of the task ``name``, or the one job ``name`` of the domain ``uuid``.

    :raises UnknownTask: there is no such task or job here.
    :raises InvalidRequest: there is nothing to pause: not started yet, or all has ended.
    """

    def one(monitor: Monitor, job: Job) -> None:
        if job.block:
            monitor.execute("block-job-pause", device=job.id)
        else:
            monitor.execute("job-pause", id=job.id)

    return _steer(engine, name, uuid, "pause", "paused", one, lambda job: job.paused)


def resume(engine: Engine, name: str, uuid: str = "") -> str:
    """Let paused jobs go on; parameters and errors are those of :func:`pause`."""

    def one(monitor: Monitor, job: Job) -> None:
        if job.block:
            monitor.execute("block-job-resume", device=job.id)
        else:
            monitor.execute("job-resume", id=job.id)

    return _steer(engine, name, uuid, "resume", "running", one, lambda job: not job.paused)


def set_speed(engine: Engine, rate: int, name: str, uuid: str = "") -> str:
    """Limit jobs to ``rate`` bytes per second each, 0 for no limit; else as :func:`pause`."""
    if rate < 0:
        raise InvalidRequest(f"speed: {rate} is negative.", "0 is no limit.")

    def one(monitor: Monitor, job: Job) -> None:
        if not job.block:
            raise InvalidRequest(
                f"Job {job.id} ({job.type}) is no block job and has no speed limit.",
                "Pause it instead.",
            )
        monitor.execute("block-job-set-speed", device=job.id, speed=rate)

    done = f"limited to {_rate(rate)}" if rate else "without a speed limit"
    return _steer(engine, name, uuid, "set the speed of", done, one, lambda job: False)


def _steer(
    engine: Engine,
    name: str,
    uuid: str,
    verb: str,
    done: str,
    one: Callable[[Monitor, Job], None],
    so_already: Callable[[Job], bool],
) -> str:
    """Do ``one`` to each job meant that is live and not so already; gives the sentence."""
    if uuid:
        with one_job(engine, name, uuid) as (monitor, job, domain):
            named = f"Block job {name} of domain {domain}"
            _require_live([job], named, verb)
            changed = _change(monitor, [job], one, so_already)
        return f"{named} {'is' if changed else 'was already'} {done}."
    run = engine.journal.read(name)
    if run is None:
        raise UnknownTask(
            f"Task {name} has no block jobs on {engine.settings.host}.",
            "It is queued or has ended; `virtvault jobs` lists what runs.",
        )
    task = f"task {name} ({run.kind} of {run.domain})"
    if run.kind in ("verify", "serve"):
        raise InvalidRequest(
            f"T{task[1:]} has no block jobs to {verb}.",
            "It can be cancelled; a verify can be given --speed as it is begun.",
        )
    if run.phase in PREPARING:
        raise InvalidRequest(
            f"T{task[1:]} is still preparing: its block jobs have not been started.",
            "Try again in a moment: `virtvault jobs` lists them once they run. To begin at a "
            "certain speed, cancel it and give --speed.",
        )
    with contextlib.closing(control_monitor(engine, run)) as monitor:
        jobs = of_run(monitor, run)
        _require_live(jobs, f"T{task[1:]}", verb)
        changed = _change(monitor, [job for job in jobs if job.live], one, so_already)
    if not changed:
        return f"The block jobs of {task} were already {done}."
    count = "1 block job" if changed == 1 else f"{changed} block jobs"
    return f"{count} of {task} {'is' if changed == 1 else 'are'} {done}."


def _change(
    monitor: Monitor,
    jobs: Iterable[Job],
    one: Callable[[Monitor, Job], None],
    so_already: Callable[[Job], bool],
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
            now = job_listing.listed(monitor).get(job.id)
            if now is not None and now.live and not so_already(now):
                raise
        else:
            changed += 1
    return changed


def _require_live(jobs: list[Job], named: str, verb: str) -> None:
    """:raises InvalidRequest: none of the jobs takes commands any more."""
    if any(job.live for job in jobs):
        return
    errors = "; ".join(job.error for job in jobs if job.error)
    why = f"it failed: {errors}" if errors else "its work is done" if jobs else "none is listed"
    raise InvalidRequest(
        f"{named} has nothing left to {verb}: {why.rstrip('.')}.",
        "`virtvault jobs` lists what runs.",
    )


def _whose(job: Job) -> str:
    if tag_in(job.id):
        return "another virtvault's, or that of a task whose record was lost"
    if libvirts := LIBVIRTS.match(job.id):
        return f"libvirt's {LIBVIRTS_WORD[libvirts[1]]} of disk {libvirts[2]}"
    if job.id.startswith("drive-"):
        return "libvirt's (a block job, or the storage copy of a migration)"
    return f"a user's or another tool's {job.type}"


def _rate(rate: int) -> str:
    return f"{rate / 2**20:.1f} MiB/s" if rate >= 2**20 else f"{rate} bytes/s"
