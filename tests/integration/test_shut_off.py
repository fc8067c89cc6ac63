"""Domains that are shut off, and what happens when one starts or stops in the middle."""

from __future__ import annotations

import subprocess
import uuid
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    Running,
    TakePoints,
    assert_nothing_remains,
    assert_one_bitmap_per_disk,
    committed,
    disk_of,
    files,
    give_new_content,
    qemu_img,
    syncs,
)
from tests.lab import DiskSpec, Guest
from virtvault.errors import (
    Cancelled,
    DomainStarted,
    InvalidRequest,
    NotSupported,
    RepositoryUnusable,
    WorkFailed,
)
from virtvault.models import BackupRequest, BackupResult
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.offline import discover
from workers.recovery import tidy

VDB = DiskSpec("vdb", "qcow2", 64 * MIB)


def stored_bitmaps(guest: Guest, target: str = "vda") -> list[str]:
    """The bitmaps in the image of a disk whose domain is shut off."""
    (disk,) = [d for d in discover(guest.domain.XMLDesc()) if d.target == target]
    return sorted(disk.layers[0].bitmaps)


def start_paused(engine: Engine, guest: Guest) -> BackupResult:
    request = BackupRequest(domain=guest.domain.name(), start_paused=True)
    result = backup(engine, request, Ties(uuid.uuid4().hex))
    assert isinstance(result, BackupResult)
    return result


def test_a_chain_goes_on_from_on_to_off_to_on(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, VDB)
    chain = points(guest)
    give_new_content(guest, 1)
    results = [chain.take()]
    give_new_content(guest, 2)
    guest.shutdown_clean()
    results.append(chain.take())
    assert_nothing_remains(engine, guest)
    results.append(chain.take())
    guest.start()
    give_new_content(guest, 3)
    results.append(chain.take())
    for before, after in pairwise(results):
        assert set(syncs(after).values()) == {"incremental"}
        assert {disk.parent for disk in after.disks} == {before.point}
    unchanged = disk_of(results[2], "vda")
    assert unchanged.transferred == unchanged.witness
    assert_one_bitmap_per_disk(guest, results[-1])
    chain.prove_all()


def test_a_domain_that_was_only_ever_backed_up_while_shut_off_has_a_chain_too(
    boot: Boot, points: TakePoints
) -> None:
    guest = boot(VDA)
    give_new_content(guest, 1)
    guest.shutdown_clean()
    chain = points(guest)
    assert syncs(chain.take()) == {"vda": "full"}
    guest.start()
    give_new_content(guest, 2)
    guest.shutdown_clean()
    assert syncs(chain.take()) == {"vda": "incremental"}
    chain.prove_all()


def test_after_qemu_was_killed_the_shut_off_domain_gets_a_full_with_the_reason(
    boot: Boot, points: TakePoints
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    # Stored once, so that it is there, and marked as in use, after the kill.
    guest.shutdown_clean()
    guest.start()
    give_new_content(guest, 2)
    guest.kill_qemu()
    result = chain.take()
    assert disk_of(result, "vda").sync == "full"
    assert "is inconsistent (QEMU ended without storing it)" in disk_of(result, "vda").reason
    chain.prove_all()


@pytest.fixture
def shut_off(boot: Boot, points: TakePoints) -> Points:
    """A shut-off domain with a point, and 14 MiB written since."""
    guest = boot(VDA, VDB)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    for target in guest.disks:
        guest.qemu_io(target, "write -P 3 0 14M")
    guest.shutdown_clean()
    return chain


def test_a_domain_that_is_started_in_the_middle_starts_and_the_point_fails_cleanly(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    before = committed(engine)
    with Running(engine, guest) as running:
        guest.start()
        error = running.raised()
    assert isinstance(error, DomainStarted)
    assert f"{guest.name} was started while it was being backed up" in error.message
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    give_new_content(guest, 4)
    result = shut_off.take()
    assert set(syncs(result).values()) == {"incremental"}
    assert_one_bitmap_per_disk(guest, result)
    shut_off.prove_all()


def test_a_domain_that_ran_in_between_is_noticed_though_it_is_off_again(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    slow = with_settings(engine, poll_min=3.0, poll_max=3.0)
    with Running(slow, guest) as running:
        guest.start()
        give_new_content(guest, 5)
        guest.shutdown_clean()
        error = running.raised()
    assert isinstance(error, DomainStarted)
    assert_nothing_remains(engine, guest)
    assert set(syncs(shut_off.take()).values()) == {"incremental"}
    shut_off.prove_all()


def test_another_program_that_writes_to_the_image_fails_the_point(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    with Running(engine, guest) as running:
        image = guest.image("vda")
        command = ["qemu-io", "-f", "qcow2", "-c", "write -P 9 30M 1M", image]
        subprocess.run(command, check=True, capture_output=True)
        error = running.raised()
    assert isinstance(error, DomainStarted)
    assert f"{image} was written to" in error.message
    assert_nothing_remains(engine, guest)
    # QEMU's own tools keep the bitmaps.
    assert set(syncs(shut_off.take()).values()) == {"incremental"}
    shut_off.prove_all()


def test_a_cancelled_backup_of_a_shut_off_domain_leaves_its_images_as_they_were(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    before = stored_bitmaps(guest)
    with Running(engine, guest) as running:
        engine.journal.wishes(running.task_id).touch()
        assert isinstance(running.raised(), Cancelled)
    assert stored_bitmaps(guest) == before
    assert_nothing_remains(engine, guest)
    assert set(syncs(shut_off.take()).values()) == {"incremental"}
    shut_off.prove_all()


def test_a_detached_backup_of_a_shut_off_domain_is_finished_by_the_same_task(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    with Running(engine, guest, speed=4 * MIB) as running:
        running.stopping.set()
        assert isinstance(running.raised(), Detached)
    with Running(Engine.of(engine.settings), guest, task_id=running.task_id) as again:
        result = again.result()
    assert set(syncs(result).values()) == {"incremental"}
    assert_nothing_remains(engine, guest)
    assert syncs(shut_off.take()) == {"vda": "incremental", "vdb": "incremental"}
    shut_off.prove_all()


def test_a_disk_that_cannot_be_read_fails_the_backup_and_is_not_left_out_silently(
    shut_off: Points, engine: Engine, workdir: Path
) -> None:
    guest = shut_off.guest
    before = committed(engine)
    guest.image("vdb").rename(workdir / "away")
    with pytest.raises(NotSupported, match=r"Disk vdb of domain .* cannot be backed up: .*No such"):
        shut_off.back_up()
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    assert syncs(shut_off.back_up(disks=("vda",))) == {"vda": "incremental"}
    (workdir / "away").rename(guest.image("vdb"))


def test_a_backing_file_without_a_format_is_not_probed(
    shut_off: Points, engine: Engine, workdir: Path
) -> None:
    guest = shut_off.guest
    image = guest.image("vda")
    image.rename(workdir / "base")
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    # What was `rebase -u` without a format in older tools.
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", workdir / "base", "-F", "qcow2", image)
    forget_backing_format(image)
    with pytest.raises(NotSupported, match="without a format, and probing it would trust"):
        shut_off.back_up()


def forget_backing_format(image: Path) -> None:
    """Take the header extension that names the backing format out of a qcow2 image."""
    with image.open("r+b") as file:
        header = file.read(4096)
        # Extension type 0xe2792aca, qcow2's specification; type 0x6803f857 is ignored names.
        at = header.index(bytes.fromhex("e2792aca"))
        file.seek(at)
        file.write(bytes.fromhex("12345678"))


def test_an_image_that_another_program_has_open_is_named(shut_off: Points, engine: Engine) -> None:
    guest = shut_off.guest
    command = ["qemu-io", "-f", "qcow2", str(guest.image("vda"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdin
        holder.stdout.read(8)  # its prompt: it has the image open
        with pytest.raises(WorkFailed, match=f"{guest.image('vda')} is in use"):
            shut_off.back_up()
        holder.stdin.close()
    assert_nothing_remains(engine, guest)
    assert set(syncs(shut_off.take()).values()) == {"incremental"}
    shut_off.prove_all()


# -- --start-paused --------------------------------------------------------------------------------


def test_start_paused_captures_the_disk_before_the_guest_runs(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 256 * MIB), boot=True, writer=True)
    guest.wait_ready()
    chain = points(guest)
    guest.power_off()
    reference = guest.reference("vda", chain.directory / "reference")
    result = start_paused(engine, guest)
    chain.taken.append((result, {"vda": reference}))
    chain.prove_all()
    guest.wait_ready()
    guest.wait_ticks(1)
    assert_nothing_remains(engine, guest)


def test_start_paused_of_a_running_domain_is_refused(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    with pytest.raises(InvalidRequest, match="runs already"):
        start_paused(engine, guest)
    assert guest.is_active()
    assert_nothing_remains(engine, guest)


def test_where_start_paused_fails_the_domain_is_shut_off_as_before(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    broken = with_settings(engine, scratch_dir="/proc/no-such-place")
    with pytest.raises(RepositoryUnusable, match="no-such-place"):
        start_paused(broken, guest)
    assert not guest.is_active()
    assert_nothing_remains(engine, guest)
    assert set(syncs(start_paused(engine, guest)).values()) == {"incremental"}
    assert guest.is_active()


def test_a_worker_that_died_between_start_and_instant_starts_anew(
    shut_off: Points, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = shut_off.guest
    task_id = uuid.uuid4().hex
    request = BackupRequest(domain=guest.domain.name(), start_paused=True)
    with monkeypatch.context() as patch:
        # Nothing runs after the start: what a SIGKILL leaves, as the journal and libvirt see it.
        patch.setattr("workers.capture.begin.choose_way", killed)
        patch.setattr("workers.recovery.Undo.all", lambda _: None)
        patch.setattr("workers.backup._mark_failed", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            backup(engine, request, Ties(task_id))
    assert guest.is_paused()
    run = engine.journal.read(task_id)
    assert run is not None
    assert run.unstarted
    result = backup(engine, request, Ties(task_id))
    assert isinstance(result, BackupResult)
    assert not guest.is_paused()
    assert guest.is_active()
    assert_nothing_remains(engine, guest)


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_raw_disks_of_a_shut_off_domain_get_a_full_each_time(
    boot: Boot, points: TakePoints
) -> None:
    guest = boot(VDB_RAW)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    guest.shutdown_clean()
    for _ in range(2):
        result = chain.take()
        assert disk_of(result, "vdb").sync == "full"
        assert disk_of(result, "vdb").bitmap == ""
    chain.prove_all()


def test_a_domain_that_comes_and_goes_finds_no_lock_and_all_is_undone_in_the_end(
    shut_off: Points, engine: Engine
) -> None:
    guest = shut_off.guest
    with Running(engine, guest) as running:
        for _ in range(3):
            guest.start()
            guest.power_off()
        running.raised()
    # What the undo could not do while the domain came and went, the worker's housekeeping does.
    tidy(engine)
    assert_nothing_remains(engine, guest)
    assert files(engine.settings.runtime_dir) == []
    assert set(syncs(shut_off.take()).values()) <= {"incremental", "full"}
    shut_off.prove_all()
