"""What a review of the capture ways found."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.integration.conftest import MIB, with_settings
from tests.integration.scenes import (
    VDA,
    Boot,
    Open,
    Running,
    TakePoints,
    assert_nothing_remains,
    bitmaps,
    disk_of,
    give_new_content,
    image_of,
    node_of,
    qemu_img,
    snapshot,
    syncs,
)
from tests.lab import DiskSpec, Guest, assert_same
from virtvault.errors import (
    Cancelled,
    DomainStarted,
    NotReachable,
    VirtvaultError,
)
from virtvault.models import BackupRequest, BackupResult, Progress, RestoreRequest
from virtvault.settings import RepositorySettings
from workers import isolation
from workers.backup import backup
from workers.capture.offline import Offline
from workers.engine import Engine, Ties
from workers.hypervisor import Hypervisor
from workers.journal import Journal, Run
from workers.recovery import tidy
from workers.restore import restore

VDB = DiskSpec("vdb", "qcow2", 64 * MIB)


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def as_if_killed(patch: pytest.MonkeyPatch) -> None:
    """Nothing runs after an interruption: what a SIGKILL leaves, as the journal and QEMU see it."""
    patch.setattr("workers.recovery.Undo.all", lambda _: None)
    patch.setattr("workers.backup._mark_failed", lambda *_: None)


def nbd_server_is_free(guest: Guest, directory: Path) -> bool:
    address = {"type": "unix", "data": {"path": str(directory / "probe.sock")}}
    try:
        guest.qmp("nbd-server-start", addr=address)
    except RuntimeError:
        return False
    guest.qmp("nbd-server-stop")
    return True


# 1
def test_an_export_that_fails_before_its_first_disk_is_served_gives_the_nbd_server_back(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch, workdir: Path
) -> None:
    guest = boot(VDA)
    execute = isolation.Monitor  # noqa: F841
    from workers.hypervisor import LibvirtMonitor

    real = LibvirtMonitor.execute

    def refusing(self: Any, command: str, **arguments: Any) -> Any:
        if command == "block-export-add":
            killed()
        return real(self, command, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LibvirtMonitor, "execute", refusing)
        with pytest.raises(KeyboardInterrupt):
            backup(engine, BackupRequest(domain=guest.name, sync="none"), Ties(uuid.uuid4().hex))
    assert_nothing_remains(engine, guest)
    assert nbd_server_is_free(guest, workdir / "guest")
    with Open(engine, guest) as export:
        export.close()


# 2
def test_a_domain_that_ran_between_opening_its_images_and_the_witness_is_noticed(
    boot: Boot, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 8M")
    chain.take()
    guest.shutdown_clean()
    take = Offline.take

    def ran(self: Offline, *arguments: Any) -> Any:
        guest.start()
        guest.qemu_io("vda", "write -P 9 2M 1M")
        guest.qemu_io("vda", "write -P 9 30M 1M")
        guest.shutdown_clean()
        return take(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Offline, "take", ran)
        try:
            result = chain.back_up()
        except DomainStarted:
            return
    print(syncs(result))
    assert_same(image_of(engine, result), "qcow2", guest.image("vda"), "qcow2")


# 3
def redefine(guest: Guest, connection: libvirt.virConnect, old: str, new: str) -> None:
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert old in xml
    connection.defineXML(xml.replace(old, new))


def test_a_slice_of_a_file_is_backed_up_alike_running_and_shut_off(
    boot: Boot, engine: Engine, points: TakePoints, connection: libvirt.virConnect
) -> None:
    guest = boot(DiskSpec("vda", "raw", 64 * MIB))
    guest.shutdown_clean()
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    import re

    new = re.sub(
        r"(<source file='[^']*')/>",
        rf"\1><slices><slice type='storage' offset='{MIB}' size='{32 * MIB}'/></slices></source>",
        xml,
    )
    assert new != xml
    connection.defineXML(new)
    guest.start()
    guest.qemu_io("vda", "write -P 5 0 1M")
    running = points(guest).back_up()
    guest.shutdown_clean()
    off = points(guest).back_up()
    print(running.disks, off.disks)
    assert disk_of(off, "vda").virtual_size == disk_of(running, "vda").virtual_size


def test_backing_store_as_the_xml_says(
    boot: Boot, engine: Engine, points: TakePoints, connection: libvirt.virConnect, workdir: Path
) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 5 0 4M")
    guest.shutdown_clean()
    base = workdir / "guest" / "base.qcow2"
    guest.image("vda").rename(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", guest.image("vda"))
    import re

    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    new = re.sub(r"(<source file='[^']*'/>)", r"\1<backingStore/>", xml)
    connection.defineXML(new)
    guest.start()
    running = points(guest).back_up()
    guest.shutdown_clean()
    off = points(guest).back_up("full")
    assert_same(image_of(engine, off), "qcow2", image_of(engine, running), "qcow2")


# 4
def test_a_cancelled_backup_of_a_domain_undefined_meanwhile_leaves_nothing(
    boot: Boot, engine: Engine, connection: libvirt.virConnect
) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 16M")
    guest.shutdown_clean()
    xml = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    with Running(engine, guest) as running:
        guest.domain.undefine()
        engine.journal.wishes(running.task_id).touch()
        try:
            assert isinstance(running.raised(), Cancelled)
            tidy(engine)
            left = engine.journal.all()
        finally:
            guest.domain = connection.defineXML(xml)
    assert not left
    assert_nothing_remains(engine, guest)


# 5
def test_a_domain_resumed_by_somebody_else_does_not_fail_its_start_paused_backup(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA)
    guest.shutdown_clean()

    def resume(progress: Progress) -> None:
        if progress.phase == "copying" and guest.is_paused():
            guest.resume()

    request = BackupRequest(domain=guest.name, start_paused=True)
    result = backup(engine, request, Ties(uuid.uuid4().hex, resume))
    assert isinstance(result, BackupResult)


def test_a_worker_killed_just_after_it_let_the_domain_run_finishes_the_point(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.shutdown_clean()
    task_id = uuid.uuid4().hex
    request = BackupRequest(domain=guest.name, start_paused=True)
    resume = Hypervisor.resume

    def dies(self: Hypervisor, domain: str) -> None:
        resume(self, domain)
        killed()

    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr(Hypervisor, "resume", dies)
        patch.setattr(Journal, "write", not_an_error(Journal.write))
        with pytest.raises(KeyboardInterrupt):
            backup(engine, request, Ties(task_id))
    assert not guest.is_paused()
    assert isinstance(backup(engine, request, Ties(task_id)), BackupResult)


def not_an_error(write: Any) -> Any:
    def wrapped(self: Journal, run: Run) -> None:
        if not run.error:
            write(self, run)

    return wrapped


# 6
def test_a_guest_that_its_owner_started_and_suspended_is_not_destroyed(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.shutdown_clean()
    request = BackupRequest(domain=guest.name, start_paused=True)
    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr("workers.capture.begin.choose_way", killed)
        patch.setattr(Journal, "write", not_an_error(Journal.write))
        with pytest.raises(KeyboardInterrupt):
            backup(engine, request, Ties(uuid.uuid4().hex))
    (run,) = engine.journal.all()
    assert run.unstarted
    # The worker stays down; its owner wants the domain to run, and later suspends it.
    guest.resume()
    guest.suspend()
    backup(engine, BackupRequest(domain=guest.name), Ties(uuid.uuid4().hex))
    assert guest.is_active()


# 7
def test_a_start_that_takes_longer_than_a_qmp_command_leaves_no_domain_standing(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.shutdown_clean()
    hasty = with_settings(engine, qmp_timeout=0.12)
    request = BackupRequest(domain=guest.name, start_paused=True)
    with pytest.raises(VirtvaultError) as caught:
        backup(hasty, request, Ties(uuid.uuid4().hex))
    print(repr(caught.value))
    import time

    time.sleep(3)
    tidy(engine)
    print(guest.domain.state(), engine.journal.all())
    assert not guest.is_active()


# 8
def test_a_repository_that_went_away_after_the_commit_does_not_block_backups_to_another(
    boot: Boot, engine: Engine, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "other").mkdir()
    both = with_settings(
        engine,
        repositories={
            "main": RepositorySettings("main", str(workdir / "repo")),
            "other": RepositorySettings("other", str(workdir / "other")),
        },
    )
    guest = boot(VDA)
    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr("workers.backup.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            backup(both, BackupRequest(domain=guest.name, repository="main"), Ties(uuid.uuid4().hex))
    (workdir / "repo").rename(workdir / "away")
    tidy(both)
    backup(both, BackupRequest(domain=guest.name, repository="other"), Ties(uuid.uuid4().hex))


# 8b
def test_a_users_bitmap_that_cannot_be_cleared_does_not_block_backups(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vda"), name="mine", persistent=True)
    guest.shutdown_clean()
    guest.start()
    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr("workers.backup.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            backup(engine, BackupRequest(domain=guest.name, bitmap="mine"), Ties(uuid.uuid4().hex))
    guest.kill_qemu()
    guest.start()
    tidy(engine)
    backup(engine, BackupRequest(domain=guest.name), Ties(uuid.uuid4().hex))


# 17
def test_a_users_new_bitmap_keeps_its_bits_where_the_points_own_is_gone(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vda"), name="mine")
    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr("workers.backup.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            backup(engine, BackupRequest(domain=guest.name, bitmap="mine"), Ties(uuid.uuid4().hex))
    guest.kill_qemu()
    guest.start()
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vda"), name="mine")
    guest.qemu_io("vda", "write -P 7 4M 1M")
    tidy(engine)
    (mine,) = [b for n, b in bitmaps(guest).items() if n.endswith("/mine")]
    assert mine["count"] == MIB


# 9
def test_an_export_outlives_a_restart_of_libvirtd(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    with Open(engine, guest) as export:

        def away(_: Hypervisor) -> None:
            raise NotReachable("libvirt does not answer.")

        with monkeypatch.context() as patch:
            patch.setattr(Hypervisor, "connection", away)
            export._thread.join(3)
        alive = export._thread.is_alive()
        if alive:
            export.close()
        else:
            print(repr(export._raised))
    tidy(engine)
    assert alive


def test_an_offline_backup_outlives_a_restart_of_libvirtd(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 16M")
    guest.shutdown_clean()
    with Running(engine, guest, speed=4 * MIB) as running:

        def away(_: Hypervisor) -> None:
            raise NotReachable("libvirt does not answer.")

        with monkeypatch.context() as patch:
            patch.setattr(Hypervisor, "connection", away)
            running._thread.join(1.5)
        running.result()
    tidy(engine)


def test_an_export_whose_qemu_stalls_says_so(boot: Boot, engine: Engine) -> None:
    import signal

    hasty = with_settings(engine, stall_seconds=1, qmp_timeout=5)
    guest = boot(VDA)
    pid = int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text())
    with Open(hasty, guest) as export:
        os.kill(pid, signal.SIGSTOP)
        try:
            export._thread.join(15)
        finally:
            os.kill(pid, signal.SIGCONT)
        error = export.raised()
    print(repr(error))
    tidy(engine)
    assert isinstance(error, VirtvaultError)


# 11
def test_a_run_whose_repository_is_unmounted_at_its_undo_leaves_no_partial(
    boot: Boot, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 16M")
    repo = workdir / "repo"
    with Running(engine, guest) as running:
        repo.rename(workdir / "elsewhere")
        repo.mkdir()
        engine.journal.wishes(running.task_id).touch()
        running.raised()
    repo.rmdir()
    (workdir / "elsewhere").rename(repo)
    tidy(engine)
    assert_nothing_remains(engine, guest)


# 16
def test_a_task_killed_while_standing_is_done_though_its_domain_was_shut_off_meanwhile(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    task_id = uuid.uuid4().hex
    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr(isolation, "add_filter", killed)
        patch.setattr(Journal, "write", not_an_error(Journal.write))
        with pytest.raises(KeyboardInterrupt):
            backup(engine, BackupRequest(domain=guest.name), Ties(task_id))
    guest.shutdown_clean()
    result = backup(engine, BackupRequest(domain=guest.name), Ties(task_id))
    assert isinstance(result, BackupResult)


# 14
def test_a_slow_job_is_not_taken_for_a_dead_one(boot: Boot, engine: Engine) -> None:
    guest = boot(DiskSpec("vda", "qcow2", 512 * MIB))
    guest.qemu_io("vda", "write -P 1 0 200M")
    hasty = with_settings(engine, stall_seconds=6)
    # A tenth of the default patience with ten times the speed.
    with Running(hasty, guest, speed=4 * MIB) as running:
        running._thread.join(20)
        print(running._raised)
        assert running._thread.is_alive()


# 43
def test_a_top_whose_backing_image_has_its_data_elsewhere(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    guest.shutdown_clean()
    base = guest.image("vda")
    base.unlink()
    data = workdir / "outside.raw"
    qemu_img(
        "create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", base, "64M"
    )
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", base], check=True)
    data.chmod(0o666)
    workdir.chmod(0o711)
    overlay = workdir / "guest" / "overlay.qcow2"
    guest.start()
    snapshot(guest, "vda", overlay)
    give_new_content(guest, 2)
    result = points(guest).back_up(sync="top")
    assert disk_of(result, "vda").sync == "top"
    guest.power_off()
    with data.open("r+b") as file:
        file.write(b"changed")
    allowed = with_settings(engine, backing_roots=(str(base.parent),))
    request = RestoreRequest(point=result.point, to="back", repository="main")
    with pytest.raises(VirtvaultError):
        restore(allowed, request, Ties(uuid.uuid4().hex))


# 62
def test_an_export_whose_worker_died_while_closing_it_is_closed(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    with monkeypatch.context() as patch:
        as_if_killed(patch)
        patch.setattr(Journal, "remember", killed)
        with Open(engine, guest) as export:
            engine.journal.wishes(export.task_id).touch()
            export.raised()
    again = Open(engine, guest, task_id=export.task_id)
    engine.journal.wishes(export.task_id).touch()
    again._thread.start()
    again._thread.join(20)
    print(repr(again._raised))
    assert again._result is not None
