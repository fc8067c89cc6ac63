"""Nothing that happens to a backup reaches the guest, and nothing half done is left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    Running,
    assert_nothing_remains,
    assert_one_bitmap_per_disk,
    bitmaps,
    block_jobs,
    committed,
    disk_of,
    give_new_content,
    nodes,
    processes,
    until,
)
from tests.lab import DiskSpec, Guest
from virtvault.errors import (
    Cancelled,
    DomainBusy,
    DomainStopped,
    JobFailed,
    JobVanished,
    NotReachable,
    RepositoryUnusable,
)
from virtvault.models import BackupRequest, Progress
from virtvault.settings import RepositorySettings, Settings
from workers import exports, isolation, recovery
from workers.backup import Duplicate, backup
from workers.engine import Engine, Ties
from workers.hypervisor import Hypervisor
from workers.jobs import Detached
from workers.journal import Journal, Run
from workers.repository import DirectoryRepository

Boot = Callable[..., Guest]
TakePoints = Callable[[Guest], Points]

VDA = DiskSpec("vda", "qcow2", 64 * MIB)
VDB = DiskSpec("vdb", "qcow2", 64 * MIB)

# Seconds a guest's write may take while the backup's target is dead or stalled. Seen: 0.01-0.1.
SANE = 2.0


@pytest.fixture
def impatient(engine: Engine) -> Engine:
    """An engine that gives up a silent target after 2 s, scratch after 1 s, QEMU after 10 s."""
    return with_settings(engine, stall_seconds=2, cbw_timeout=1, qmp_timeout=10)


def with_parent(guest: Guest, chain: Points) -> None:
    """A guest with old data all over and a point of it."""
    for target in guest.disks:
        guest.qemu_io(target, "write -P 1 0 16M")
    chain.take()


def write_around(guest: Guest) -> float:
    """Overwrite what is not copied yet, all over the disk; the slowest write's seconds."""
    slowest = max(
        guest.qemu_io(target, f"write -P {7 + number} {12 - number}M 256k")
        for number in range(8)
        for target in guest.disks
    )
    print(f"slowest guest write: {slowest * 1000:.0f} ms")
    return slowest


def assert_next_incremental_is_right(chain: Points) -> None:
    """Everything the guest wrote is in the next incremental, and every point still is right."""
    after = chain.take()
    assert {disk.sync for disk in after.disks} == {"incremental"}
    chain.prove_all()
    assert_one_bitmap_per_disk(chain.guest, after)
    assert_nothing_remains(chain.engine, chain.guest)


# -- the target's and the scratch's process --------------------------------------------------------


@pytest.mark.parametrize("which", ["t", "s"], ids=["target", "scratch"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "stalls"])
def test_guest_works_on_and_nothing_is_lost_when_an_export(
    boot: Boot, points: TakePoints, impatient: Engine, which: str, how: signal.Signals
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    chain.engine = impatient
    with_parent(guest, chain)
    for target in guest.disks:
        guest.qemu_io(target, "write -P 3 0 14M")
    before = (committed(impatient), set(bitmaps(guest)))
    with Running(impatient, guest, speed=8 * MIB) as running:
        os.kill(running.export_pid("vda", which), how)
        slowest = write_around(guest)
        # A stalled scratch holds one write up, for cbw_timeout: then the snapshot is given up.
        one_wait = impatient.settings.cbw_timeout if (which, how) == ("s", signal.SIGSTOP) else 0
        assert slowest < SANE + one_wait
        error = running.raised()
    assert isinstance(error, JobFailed | RepositoryUnusable)
    assert "vda" in error.message
    assert error.mend
    assert (committed(impatient), set(bitmaps(guest))) == before
    assert_nothing_remains(impatient, guest)
    assert_next_incremental_is_right(chain)


def test_guest_works_on_when_one_target_dies_while_another_stalls(
    boot: Boot, points: TakePoints, impatient: Engine
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    chain.engine = impatient
    with_parent(guest, chain)
    for target in guest.disks:
        guest.qemu_io(target, "write -P 3 0 14M")
    patient = with_settings(impatient, stall_seconds=60)
    with Running(patient, guest, speed=8 * MIB) as running:
        stalled = running.export_pid("vda", "t")
        dying = f"virtvault-{running.tag}-vdb"
        slowest: list[float] = []

        def work_on() -> None:
            until(lambda: block_jobs(guest)[dying]["status"] != "running", "the end of one job")
            slowest.append(write_around(guest))

        os.kill(stalled, signal.SIGSTOP)
        os.kill(running.export_pid("vdb", "t"), signal.SIGKILL)
        # In a thread, since a QEMU that waits for the other target answers nobody.
        writer = threading.Thread(target=work_on, daemon=True)
        writer.start()
        writer.join(4 * SANE)
        answered = not writer.is_alive()
        os.kill(stalled, signal.SIGKILL)
        error = running.raised()
        writer.join(30)
    assert answered, "QEMU waited for the stalled target and the guest with it"
    assert slowest[0] < SANE
    assert isinstance(error, JobFailed)
    assert_nothing_remains(impatient, guest)
    assert_next_incremental_is_right(chain)


def test_a_target_that_dies_after_the_last_byte_is_not_taken_for_written(
    boot: Boot, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    guest.qemu_io("vda", "write -P 3 0 4M")
    flush = exports.flush

    def killed(export: exports.Export, *more: Any) -> None:
        os.kill(int(Path(f"{export.socket}.pid").read_text()), signal.SIGKILL)
        until(lambda: not processes(export.socket), "its end")
        flush(export, *more)

    with monkeypatch.context() as patch:
        patch.setattr(exports, "flush", killed)
        with pytest.raises(RepositoryUnusable, match="was not confirmed as written"):
            chain.back_up()
    assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


def test_a_guest_that_overwrites_more_than_scratch_may_hold_goes_on_and_the_backup_fails(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    small = with_settings(engine, scratch_limit=2 * MIB)
    with Running(small, guest, sync="full") as running:
        slowest = max(guest.qemu_io("vda", f"write -P 9 {14 - n}M 1M") for n in range(8))
        print(f"slowest guest write: {slowest * 1000:.0f} ms")
        assert slowest < SANE
        error = running.raised()
    assert isinstance(error, JobFailed)
    assert "disk vda" in error.message
    assert_nothing_remains(small, guest)
    assert_next_incremental_is_right(chain)


# -- the jobs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", ["full", "auto"])
def test_a_job_somebody_else_cancels_is_not_a_success(
    boot: Boot, points: TakePoints, engine: Engine, sync: str
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    with_parent(guest, chain)
    give_new_content(guest, 2)
    before = committed(engine)
    with Running(engine, guest, sync=sync, speed=MIB // 4) as running:
        guest.qmp("block-job-cancel", device=f"virtvault-{running.tag}-vdb")
        error = running.raised()
    assert isinstance(error, JobFailed)
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


def test_a_job_somebody_else_cancels_and_dismisses_is_unknown_and_so_not_a_success(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)

    def dismiss(progress: Progress) -> None:
        # Called by the follower between two polls, so that it cannot see the job concluded.
        job = next(iter(block_jobs(guest)), None)
        if progress.phase == "copying" and progress.disks and job:
            guest.qmp("block-job-cancel", device=job, force=True)
            until(lambda: block_jobs(guest)[job]["status"] == "concluded", "the job's end")
            guest.qmp("job-dismiss", id=job)

    with Running(engine, guest, sync="full", report=dismiss) as running:
        error = running.raised()
    assert isinstance(error, JobVanished)
    assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


# -- the repository --------------------------------------------------------------------------------


@contextmanager
def tiny(path: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def at(engine: Engine, path: Path) -> Engine:
    return with_settings(engine, repositories={"main": RepositorySettings("main", str(path))})


def test_a_repository_that_is_no_directory_is_refused_before_anything_is_touched(
    boot: Boot, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    (workdir / "file").write_text("not a directory")
    request = BackupRequest(domain=guest.name)
    before = (nodes(guest), set(bitmaps(guest)))
    for path in (workdir / "file", workdir / "missing"):
        broken = at(engine, path)
        with pytest.raises(RepositoryUnusable, match="is not a directory") as caught:
            backup(broken, request, Ties(uuid.uuid4().hex))
        assert caught.value.mend
    assert (nodes(guest), set(bitmaps(guest))) == before
    assert not (workdir / "missing").exists()


def test_a_read_only_repository_is_refused_and_nothing_remains(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    with tiny(workdir / "tiny", "64M") as path:
        small = at(engine, path)
        chain = points(guest)
        chain.engine = small
        with_parent(guest, chain)
        before = (nodes(guest), set(bitmaps(guest)))
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        with pytest.raises(RepositoryUnusable, match="Read-only file system"):
            chain.back_up()
        subprocess.run(["mount", "-o", "remount,rw", path], check=True)
        assert (nodes(guest), set(bitmaps(guest))) == before
        assert_nothing_remains(small, guest)
        give_new_content(guest, 2)
        chain.take()


def test_a_full_repository_fails_the_backup_with_the_reason(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    with tiny(workdir / "tiny", "24M") as path:
        small = at(engine, path)
        chain = points(guest)
        chain.engine = small
        with_parent(guest, chain)
        guest.qemu_io("vda", "write -P 2 0 12M")
        before = committed(small)
        with pytest.raises(JobFailed, match="No space left on device") as caught:
            chain.back_up()
        assert caught.value.mend
        assert committed(small) == before
        assert_nothing_remains(small, guest)
        # Room is made: nothing was lost.
        subprocess.run(["mount", "-o", "remount,size=64M", path], check=True)
        result = chain.back_up()
        assert disk_of(result, "vda").sync == "incremental"
        assert disk_of(result, "vda").transferred >= 12 * MIB


def test_a_repository_that_fills_up_before_the_manifest_is_written_publishes_nothing(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    with tiny(workdir / "tiny", "64M") as path:
        small = at(engine, path)
        chain = points(guest)
        chain.engine = small
        with_parent(guest, chain)
        give_new_content(guest, 2)
        before = committed(small)

        def fill(progress: Progress) -> None:
            if progress.phase == "committing":
                with (path / "filler").open("wb") as file, pytest.raises(OSError, match="space"):
                    while True:
                        file.write(bytes(MIB))

        request = BackupRequest(domain=guest.name)
        # The file's own close may fail on the full disk too; what counts is the backup's answer.
        with pytest.raises(RepositoryUnusable, match="No space left on device"):
            backup(small, request, Ties(uuid.uuid4().hex, fill))
        (path / "filler").unlink()
        assert committed(small) == before
        assert_nothing_remains(small, guest)
        assert disk_of(chain.back_up(), "vda").sync == "incremental"


# -- the domain ------------------------------------------------------------------------------------


def test_a_guest_that_is_destroyed_publishes_nothing_and_its_next_backup_works(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    give_new_content(guest, 2)
    before = committed(engine)
    with Running(engine, guest, sync="full") as running:
        guest.power_off()
        error = running.raised()
    assert isinstance(error, DomainStopped | JobFailed)
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    guest.start()
    give_new_content(guest, 3)
    assert_next_incremental_is_right(chain)


def test_a_qemu_that_is_killed_publishes_nothing_and_a_full_follows(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    before = committed(engine)
    with Running(engine, guest, sync="full") as running:
        guest.kill_qemu()
        error = running.raised()
    assert isinstance(error, DomainStopped | JobFailed)
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    guest.start()
    give_new_content(guest, 3)
    result = chain.take()
    assert (disk_of(result, "vda").sync, bool(disk_of(result, "vda").reason)) == ("full", True)
    chain.prove_all()


def test_a_guest_that_ends_after_its_disks_were_copied_still_gets_its_point(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    give_new_content(guest, 2)
    reference = guest.reference("vda", chain.directory / "ref")

    def off(progress: Progress) -> None:
        if progress.phase == "closing":
            guest.power_off()

    result = backup(engine, BackupRequest(domain=guest.name), Ties(uuid.uuid4().hex, off))
    chain.taken.append((result, {"vda": reference}))
    assert_nothing_remains(engine, guest)
    guest.start()
    give_new_content(guest, 3)
    assert_next_incremental_is_right(chain)


# -- the task --------------------------------------------------------------------------------------


def test_a_second_task_is_told_who_holds_the_domain(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    with Running(engine, guest) as running:
        with pytest.raises(DomainBusy, match=running.task_id) as caught:
            backup(engine, BackupRequest(domain=guest.name), Ties(uuid.uuid4().hex))
        assert caught.value.mend
        running.hurry()
        running.result()
    assert_nothing_remains(engine, guest)


def test_a_second_delivery_of_a_running_task_steps_aside(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    with Running(engine, guest) as running:
        with pytest.raises(Duplicate):
            backup(engine, BackupRequest(domain=guest.name), Ties(running.task_id))
        running.hurry()
        running.result()
    assert_nothing_remains(engine, guest)


def test_a_cancelled_backup_undoes_all_and_loses_nothing(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    with_parent(guest, chain)
    give_new_content(guest, 2)
    before = (committed(engine), set(bitmaps(guest)))
    with Running(engine, guest, sync="full") as running:
        give_new_content(guest, 3)
        engine.journal.wishes(running.task_id).touch()
        assert isinstance(running.raised(), Cancelled)
    assert (committed(engine), set(bitmaps(guest))) == before
    assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


def test_a_paused_job_can_be_cancelled(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 8M")
    with Running(engine, guest) as running:
        job = f"virtvault-{running.tag}-vda"
        guest.qmp("job-pause", id=job)
        until(lambda: block_jobs(guest)[job]["status"] == "paused", "the pause")
        engine.journal.wishes(running.task_id).touch()
        assert isinstance(running.raised(), Cancelled)
    assert_nothing_remains(engine, guest)


def test_a_task_cancelled_before_it_starts_touches_nothing(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    task = uuid.uuid4().hex
    engine.journal.wishes(task).parent.mkdir(parents=True)
    engine.journal.wishes(task).touch()
    before = nodes(guest)
    with pytest.raises(Cancelled):
        backup(engine, BackupRequest(domain=guest.name), Ties(task))
    assert (nodes(guest), bitmaps(guest), committed(engine)) == (before, {}, [])
    assert_nothing_remains(engine, guest)


def test_a_detached_backup_goes_on_and_the_same_task_finishes_its_point(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    guest.qemu_io("vda", "write -P 2 0 12M")
    reference = guest.reference("vda", chain.directory / "ref")
    with Running(engine, guest) as running:
        running.stopping.set()
        assert isinstance(running.raised(), Detached)
    job = block_jobs(guest)[f"virtvault-{running.tag}-vda"]
    assert job["status"] == "running"
    give_new_content(guest, 3)
    with pytest.raises(DomainBusy, match=running.task_id):
        chain.back_up()
    running.hurry()
    request = BackupRequest(domain=guest.name, speed=MIB)
    result = backup(Engine.of(engine.settings), request, Ties(running.task_id))
    chain.taken.append((result, {"vda": reference}))
    assert result.point.endswith(running.tag)
    assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


def test_a_backup_that_fails_while_libvirt_is_away_is_undone_when_it_is_back(
    boot: Boot, points: TakePoints, impatient: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)

    def away(_: Hypervisor) -> None:
        raise NotReachable("libvirt does not answer.")

    with Running(impatient, guest, sync="full") as running:
        with monkeypatch.context() as patch:
            patch.setattr(Hypervisor, "connection", away)
            error = running.raised()
        assert isinstance(error, NotReachable)
    recovery.tidy(impatient)
    assert_nothing_remains(impatient, guest)
    give_new_content(guest, 3)
    assert_next_incremental_is_right(chain)


# -- the worker ------------------------------------------------------------------------------------

# Where a worker dies, and whether the same task then finishes the point it had begun.
DEATHS = {
    "planned, with one export": False,
    "planned, with all exports": False,
    "standing, with bitmaps and a filter": False,
    "instant, between two swaps": False,
    "instant, with jobs started": False,
    "copying": True,
    "copying, before the flush": True,
    "copied": True,
    "copied, on the way back": True,
    "copied, published": True,
    "committed": True,
}


def die(place: str, settings: Settings, request: BackupRequest, task_id: str) -> None:
    """Run a backup in this process and SIGKILL it at ``place``."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if when(*args):
                kill()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def after(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if when(*args):
                kill()
            return result

        setattr(owner, name, wrapped)

    def in_phase(phase: str) -> Callable[[Journal, Run], bool]:
        return lambda _, run: run.phase == phase

    {
        "planned, with one export": lambda: after(exports, "serve"),
        "planned, with all exports": lambda: before(Journal, "write", in_phase("standing")),
        "standing, with bitmaps and a filter": lambda: after(isolation, "add_filter"),
        "instant, between two swaps": lambda: after(isolation, "swap_in"),
        "instant, with jobs started": lambda: before(Journal, "write", in_phase("copying")),
        "copying": lambda: after(Journal, "write", in_phase("copying")),
        "copying, before the flush": lambda: before(exports, "flush"),
        "copied": lambda: after(Journal, "write", in_phase("copied")),
        "copied, on the way back": lambda: before(isolation, "remove_nodes"),
        "copied, published": lambda: after(DirectoryRepository, "commit"),
        "committed": lambda: after(Journal, "write", in_phase("committed")),
    }[place]()
    backup(Engine.of(settings), request, Ties(task_id))


def worker_that_dies(place: str, engine: Engine, guest: Guest, task_id: str) -> None:
    """A worker process of its own that dies at ``place`` of a backup."""
    code = (
        "import pickle, sys; from tests.integration.test_faults import die;"
        "die(*pickle.load(sys.stdin.buffer))"
    )
    request = BackupRequest(domain=guest.name)
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((place, engine.settings, request, task_id)),
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("place", DEATHS)
def test_the_same_task_goes_on_after_its_worker_was_killed_in_phase(
    boot: Boot, points: TakePoints, engine: Engine, place: str
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    with_parent(guest, chain)
    give_new_content(guest, 2)
    reference = {t: guest.reference(t, chain.directory / f"ref-{t}") for t in guest.disks}
    guest.resume()
    task = uuid.uuid4().hex
    worker_that_dies(place, engine, guest, task)
    until(lambda: guest.qmp("query-status")["running"], "the guest to run", 2)
    assert write_around(guest) < SANE
    if not DEATHS[place]:
        # All of it is undone and done again, at an instant of its own.
        guest.suspend()
        reference = {t: guest.reference(t, chain.directory / f"ref-{t}") for t in guest.disks}
        guest.resume()
    result = backup(engine, BackupRequest(domain=guest.name), Ties(task))
    assert guest.qmp("query-status")["running"]
    chain.taken.append((result, reference))
    assert {disk.sync for disk in result.disks} == {"incremental"}
    assert_one_bitmap_per_disk(guest, result)
    assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


@pytest.mark.parametrize(
    "place",
    [
        "planned, with one export",
        "standing, with bitmaps and a filter",
        "instant, between two swaps",
    ],
)
def test_another_task_clears_away_after_a_worker_that_was_killed_in_phase(
    boot: Boot, points: TakePoints, engine: Engine, place: str
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    with_parent(guest, chain)
    guest.resume()
    worker_that_dies(place, engine, guest, uuid.uuid4().hex)
    until(lambda: guest.qmp("query-status")["running"], "the guest to run", 2)
    write_around(guest)
    result = chain.back_up()
    guest.suspend()
    reference = {t: guest.reference(t, chain.directory / f"ref-{t}") for t in guest.disks}
    chain.taken.append((result, reference))
    assert_next_incremental_is_right(chain)


def test_a_task_cancelled_while_its_worker_is_dead_ends_cancelled(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    with_parent(guest, chain)
    for place in ("standing, with bitmaps and a filter", "copying"):
        task = uuid.uuid4().hex
        worker_that_dies(place, engine, guest, task)
        engine.journal.wishes(task).touch()
        before = committed(engine)
        with pytest.raises(Cancelled):
            backup(engine, BackupRequest(domain=guest.name), Ties(task))
        assert [p for p in committed(engine) if p not in before] == []
        assert_nothing_remains(engine, guest)
    assert_next_incremental_is_right(chain)


def test_a_worker_that_died_before_its_domain_did_leaves_a_task_that_ends_and_no_trace(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    with_parent(guest, chain)
    task = uuid.uuid4().hex
    worker_that_dies("copying", engine, guest, task)
    guest.shutdown_clean()
    with pytest.raises(DomainStopped):
        backup(engine, BackupRequest(domain=guest.name), Ties(task))
    assert_nothing_remains(engine, guest)
    guest.start()
    give_new_content(guest, 4)
    assert_next_incremental_is_right(chain)


def test_many_backups_leave_no_event_callback_behind(
    boot: Boot, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: set[int] = set()
    register = libvirt_qemu.qemuMonitorEventRegister
    deregister = libvirt_qemu.qemuMonitorEventDeregister

    def count_up(*arguments: Any) -> int:
        number: int = register(*arguments)
        registered.add(number)
        return number

    def count_down(connection: Any, number: int) -> None:
        deregister(connection, number)
        registered.remove(number)

    monkeypatch.setattr(libvirt_qemu, "qemuMonitorEventRegister", count_up)
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorEventDeregister", count_down)
    chain = points(boot(VDA))
    chain.back_up()
    assert registered == set()
