"""Short answers about this hypervisor, and control of its jobs. No state of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtvault.errors import (
    NotReachable,
    RepositoryUnusable,
    UnknownPoint,
    UnknownTask,
    VirtvaultError,
)
from virtvault.models import CheckLine, DiskInfo, DomainInfo, JobInfo, Point
from workers import disks as disk_view
from workers import jobs
from workers.engine import Engine, tag_of
from workers.journal import Run
from workers.monitor import Monitor
from workers.repository import open_repository
from workers.restore import daemon_of

__all__ = ["block_jobs", "cancel", "check", "disks", "find_point", "pause", "resume"]

TOOLS = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "prlimit": "util-linux",
}


def disks(engine: Engine, domain: str) -> list[DiskInfo]:
    """The disks of a running domain."""
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(domain))
    try:
        return [disk.info() for disk in disk_view.discover(monitor, monitor.xml())]
    finally:
        monitor.close()


def block_jobs(engine: Engine) -> list[JobInfo]:
    """All block jobs of this host's domains and of our storage daemons.

    A domain whose QEMU does not answer is listed with one job of status ``unknown``; it keeps
    nobody from seeing the others.
    """
    runs = engine.journal.all()

    def ask(domain: DomainInfo) -> list[JobInfo]:
        try:
            monitor = engine.hypervisor.monitor(engine.hypervisor.domain(domain.uuid))
            try:
                return _jobs(engine, monitor, domain.name, runs)
            finally:
                monitor.close()
        except NotReachable:
            return [JobInfo(domain.host, domain.name, "?", "?", "unknown", 0, 0, 0)]
        except VirtvaultError:
            return []  # it ended meanwhile, and its jobs with it

    active = [d for d in engine.hypervisor.domains() if d.state in ("running", "paused")]
    with ThreadPoolExecutor(8) as pool:
        found = [job for jobs_of_one in pool.map(ask, active) for job in jobs_of_one]
    for run in runs:
        if run.kind == "restore":
            with contextlib.suppress(VirtvaultError), _monitor(engine, run) as monitor:
                found += _jobs(engine, monitor, run.domain, runs)
    return found


def cancel(engine: Engine, task_id: str) -> str:
    """Ask a run to cancel.

    A queued one ends as it starts; one whose worker is down, at its worker's return.
    """
    wish = engine.journal.wishes(task_id)
    wish.parent.mkdir(parents=True, exist_ok=True)
    wish.touch()
    run = engine.journal.read(task_id)
    if run is None:
        return f"Task {task_id} is cancelled as soon as it starts."
    # The wish is what cancels; ending the jobs wakes the follower at once.
    with contextlib.suppress(VirtvaultError), _monitor(engine, run) as monitor:
        for job in _of_run(monitor, run):
            monitor.execute("block-job-cancel", device=job, force=True)
    return f"Task {task_id} ({run.kind} of {run.domain}) is being cancelled."


def pause(engine: Engine, task_id: str) -> str:
    """Pause a run's block jobs."""
    return _each(engine, task_id, "job-pause", "running", "paused")


def resume(engine: Engine, task_id: str) -> str:
    """Resume a run's block jobs."""
    return _each(engine, task_id, "job-resume", "paused", "running again")


def find_point(engine: Engine, point: str) -> Point | None:
    """A point in any of this host's repositories, None where there is none."""
    for name in engine.settings.repositories:
        # One that is not there now does not hide what another has.
        with contextlib.suppress(UnknownPoint, RepositoryUnusable):
            return open_repository(engine.settings, name).find(point)
    return None


def check(engine: Engine) -> list[CheckLine]:
    """Is this host ready? Each line with its mend."""
    lines = [_libvirt(engine)]
    missing = {tool: package for tool, package in TOOLS.items() if not shutil.which(tool)}
    lines.append(
        CheckLine("tools", "ok", ", ".join(TOOLS))
        if not missing
        else CheckLine(
            "tools",
            "failed",
            f"missing: {', '.join(missing)}",
            f"apt-get install {' '.join(sorted(set(missing.values())))}",
        )
    )
    lines.append(_apparmor(engine))
    lines.append(_scratch(engine))
    if not engine.settings.repositories:
        lines.append(
            CheckLine("repositories", "failed", "none", "Add [repositories.NAME] with its path.")
        )
    lines += [_repository(engine, name) for name in engine.settings.repositories]
    return lines


def _libvirt(engine: Engine) -> CheckLine:
    subject = f"libvirt at {engine.settings.libvirt_uri}"
    try:
        versions = engine.hypervisor.versions()
    except VirtvaultError as error:
        return CheckLine(subject, "failed", error.message, error.mend)
    detail = ", ".join(f"{name} {version}" for name, version in versions.items())
    if tuple(int(n) for n in versions["qemu"].split(".")[:2]) < (7, 1):
        return CheckLine(subject, "failed", f"{detail}: QEMU 7.1 is needed", "Upgrade QEMU.")
    return CheckLine(subject, "ok", detail)


def _apparmor(engine: Engine) -> CheckLine:
    enabled = Path("/sys/module/apparmor/parameters/enabled")
    if not enabled.exists() or enabled.read_text().strip() != "Y":
        return CheckLine("AppArmor", "ok", "not enabled")
    local = Path("/etc/apparmor.d/local/abstractions/libvirt-qemu")
    if local.exists() and engine.settings.runtime_dir in local.read_text():
        return CheckLine("AppArmor", "ok", "QEMU may use the runtime directory")
    return CheckLine(
        "AppArmor",
        "warning",
        f"{local} does not let QEMU use {engine.settings.runtime_dir}",
        "Install deploy/apparmor/virtvault there and restart the domains (or reload profiles).",
    )


def _scratch(engine: Engine) -> CheckLine:
    path = engine.settings.scratch
    try:
        path.mkdir(parents=True, exist_ok=True)
        stat = os.statvfs(path)
    except OSError as error:
        return CheckLine(f"scratch {path}", "failed", str(error.strerror), "Set scratch_dir.")
    free = stat.f_bavail * stat.f_frsize
    if free < engine.settings.scratch_limit:
        return CheckLine(
            f"scratch {path}",
            "warning",
            f"{free / 2**30:.1f} GiB free, less than scratch_limit lets one disk use",
            "Set scratch_dir to a larger disk, or a lower scratch_limit.",
        )
    return CheckLine(f"scratch {path}", "ok", f"{free / 2**30:.1f} GiB free")


def _repository(engine: Engine, name: str) -> CheckLine:
    """Write, read back, remove."""
    subject = f"repository {name}"
    try:
        repository = open_repository(engine.settings, name)
        probe = repository.path / f".check-{os.getpid()}"
        probe.write_text("virtvault")
        same = probe.read_text() == "virtvault"
        probe.unlink()
    except VirtvaultError as error:
        return CheckLine(subject, "failed", error.message, error.mend)
    except OSError as error:
        return CheckLine(
            subject,
            "failed",
            f"{engine.settings.repositories[name].path}: {error.strerror}",
            "Make room, or mend its mount and permissions.",
        )
    if not same:
        return CheckLine(subject, "failed", "does not give back what was written", "Replace it.")
    free = repository.free()
    verdict, mend = ("ok", "") if free > 2**30 else ("warning", "Make room.")
    return CheckLine(subject, verdict, f"{repository.path}, {free / 2**30:.1f} GiB free", mend)


def _each(engine: Engine, task_id: str, command: str, status: str, done: str) -> str:
    """Run a job command on the run's jobs in that status.

    One that has copied its part has ended, and takes none.
    """
    run = engine.journal.read(task_id)
    if run is None:
        raise UnknownTask(
            f"Task {task_id} has no block jobs on {engine.settings.host}.",
            "It is queued or has ended; `virtvault jobs` lists what runs.",
        )
    with _monitor(engine, run) as monitor:
        count = 0
        for job, entry in _of_run(monitor, run).items():
            if entry["status"] == status:
                monitor.execute(command, id=job)
                count += 1
    return f"{count} block job(s) of task {task_id} are {done}."


def _of_run(monitor: Monitor, run: Run) -> dict[str, dict[str, Any]]:
    """A run's jobs that have not concluded, by id."""
    return {
        job: entry
        for job, entry in jobs.listed(monitor).items()
        if job.startswith(f"virtvault-{tag_of(run.task_id)}-") and entry["status"] != "concluded"
    }


@contextmanager
def _monitor(engine: Engine, run: Run) -> Iterator[Monitor]:
    monitor: Monitor
    if run.kind == "restore":
        monitor = daemon_of(engine, run.task_id).monitor(engine.settings.qmp_timeout, "control")
    else:
        monitor = engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))
    try:
        yield monitor
    finally:
        monitor.close()


def _jobs(engine: Engine, monitor: Monitor, domain: str, runs: list[Run]) -> list[JobInfo]:
    owners = {tag_of(run.task_id): run.task_id for run in runs}
    found = []
    for job, entry in jobs.listed(monitor).items():
        tag = job.split("-")[1] if job.startswith("virtvault-") else ""
        found.append(
            JobInfo(
                host=engine.settings.host,
                domain=domain,
                job=job,
                type=entry["type"],
                status=entry["status"],
                done=entry["offset"],
                total=entry["len"],
                speed=entry["speed"],
                task_id=owners.get(tag, ""),
            )
        )
    return found
