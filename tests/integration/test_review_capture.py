"""Kills, other hands and odd definitions, each of which a review once proved to go wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
    block_jobs,
    disk_of,
    files,
    image_of,
    node_of,
    qemu_img,
    snapshot,
    until,
)
from tests.lab import DiskSpec, Guest, assert_same
from virtvault.errors import Cancelled, DomainStarted, NotReachable, VirtvaultError
from virtvault.models import BackupRequest, BackupResult, Progress
from virtvault.settings import RepositorySettings
from workers import isolation, offline
from workers.backup import backup
from workers.capture.offline import Offline
from workers.engine import Engine, Ties
from workers.hypervisor import Hypervisor, LibvirtMonitor
from workers.journal import Journal, Run
from workers.recovery import tidy

RAW = DiskSpec("vda", "raw", 64 * MIB)


class Killed(BaseException):
    """Stands for a SIGKILL."""


def kill(*_: object, **__: object) -> None:
    raise Killed


@contextmanager
def worker_that_dies(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """:class:`Killed` is raised in it, and nothing runs after that: what a SIGKILL leaves."""
    write = Journal.write

    def written(self: Journal, run: Run) -> None:
        if not run.error:
            write(self, run)

    with monkeypatch.context() as patch:
        patch.setattr("workers.recovery.Undo.all", lambda _: None)
        patch.setattr("workers.backup._mark_failed", lambda *_: None)
        patch.setattr(Journal, "write", written)
        with pytest.raises(Killed):
            yield patch


def ask(guest: Guest, **more: Any) -> BackupRequest:
    return BackupRequest(domain=guest.name, **more)


def run(engine: Engine, request: BackupRequest, task_id: str = "") -> BackupResult:
    result = backup(engine, request, Ties(task_id or uuid.uuid4().hex))
    assert isinstance(result, BackupResult)
    return result


@pytest.fixture
def guest(boot: Boot) -> Guest:
    """With 8 MiB of old data."""
    started = boot(VDA)
    started.qemu_io("vda", "write -P 1 0 8M")
    return started


# -- what is published -----------------------------------------------------------------------------


def test_a_spare_that_was_used_before_its_domain_was_shut_off_is_never_copied_from(
    guest: Guest, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = points(guest)
    chain.engine = with_settings(engine, qemu_as_of="2.12")
    chain.take()
    guest.qemu_io("vda", "write -P 2 1M 1M")
    task_id = uuid.uuid4().hex
    with worker_that_dies(monkeypatch) as patch:
        # Its jobs have been started, and go on to their good end without it.
        patch.setattr("workers.capture.begin.draft_disk", kill)
        run(chain.engine, ask(guest), task_id)
    until(lambda: all(j["status"] == "concluded" for j in block_jobs(guest).values()), "the end")
    guest.shutdown_clean()
    try:
        run(chain.engine, ask(guest), task_id)
    except VirtvaultError as error:
        print(error.message)
    guest.start()
    guest.qemu_io("vda", "write -P 3 4M 1M")
    chain.take()
    chain.prove_all()


def test_a_domain_that_ran_after_its_images_were_opened_is_noticed(
    guest: Guest, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = points(guest)
    chain.take()
    guest.shutdown_clean()
    take = Offline.take

    def ran(self: Offline, *arguments: Any) -> Any:
        guest.start()
        guest.qemu_io("vda", "write -P 9 2M 1M")
        guest.shutdown_clean()
        return take(self, *arguments)

    monkeypatch.setattr(Offline, "take", ran)
    try:
        result = chain.back_up()
    except DomainStarted:
        return
    assert_same(image_of(engine, result), "qcow2", guest.image("vda"), "qcow2")


def redefined(guest: Guest, pattern: str, by: str) -> None:
    """Change the XML the domain will be started with."""
    old = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    new = re.sub(pattern, by, old, flags=re.DOTALL)
    assert new != old
    guest.domain.connect().defineXML(new)


def test_a_slice_of_a_file_is_never_backed_up_as_the_whole_file(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(RAW)
    guest.shutdown_clean()
    slices = f"<slices><slice type='storage' offset='{MIB}' size='{32 * MIB}'/></slices>"
    redefined(guest, r"(<source file='[^']*')/>", rf"\1>{slices}</source>")
    try:
        result = points(guest).back_up()
    except VirtvaultError:
        return
    assert disk_of(result, "vda").virtual_size == 32 * MIB


def test_a_backing_chain_is_the_one_that_the_xml_says(
    guest: Guest, points: TakePoints, engine: Engine
) -> None:
    guest.shutdown_clean()
    image = guest.image("vda")
    base = image.with_suffix(".base")
    image.rename(base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
    redefined(guest, r"(<source file='[^']*'/>)", r"\1<backingStore/>")
    guest.start()
    running = points(guest).back_up()
    guest.shutdown_clean()
    try:
        result = points(guest).back_up("full")
    except VirtvaultError:
        return
    assert_same(image_of(engine, result), "qcow2", image_of(engine, running), "qcow2")


BELOW = """<backingStore type='file'><format type='{format}'/><source file='{base}'/>
<backingStore/></backingStore>"""


@pytest.mark.parametrize("header", ["has no backing image", "has another format"])
def test_a_backing_image_that_only_the_xml_knows_is_not_left_out(
    guest: Guest, points: TakePoints, engine: Engine, header: str
) -> None:
    guest.shutdown_clean()
    image = guest.image("vda")
    base = image.with_suffix(".base")
    image.rename(base)
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    if header == "has another format":
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", base, "-F", "raw", image)
    redefined(guest, r"(<source file='[^']*'/>)", r"\1" + BELOW.format(format="qcow2", base=base))
    guest.start()
    running = points(guest).back_up()
    guest.shutdown_clean()
    try:
        result = points(guest).back_up("full")
    except VirtvaultError:
        return
    assert_same(image_of(engine, result), "qcow2", image_of(engine, running), "qcow2")


# -- what is done to the guest ---------------------------------------------------------------------


def test_a_guest_that_its_owner_let_run_and_suspended_is_not_destroyed(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.shutdown_clean()
    with worker_that_dies(monkeypatch) as patch:
        patch.setattr("workers.capture.begin.choose_way", kill)
        run(engine, ask(guest, start_paused=True))
    # The worker stays down. The owner wants the domain to run, and later suspends it.
    guest.resume()
    guest.suspend()
    run(engine, ask(guest))
    assert guest.is_active()


def test_a_start_that_takes_longer_than_a_command_leaves_no_domain_standing_for_good(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.shutdown_clean()
    create = libvirt.virDomain.createWithFlags
    ended: list[bool] = []

    def slow(self: libvirt.virDomain, flags: int = 0) -> None:
        time.sleep(2)
        create(self, flags)
        ended.append(True)

    monkeypatch.setattr(libvirt.virDomain, "createWithFlags", slow)
    hasty = with_settings(engine, qmp_timeout=1)
    try:
        run(hasty, ask(guest, start_paused=True))
    except VirtvaultError:
        until(lambda: ended, "the start's end")
        tidy(hasty)
        assert not guest.is_active()
    else:
        assert not guest.is_paused()


def test_a_domain_that_somebody_else_let_run_does_not_fail_its_backup(
    guest: Guest, engine: Engine
) -> None:
    guest.shutdown_clean()

    def resume(progress: Progress) -> None:
        if progress.phase == "copying" and guest.is_paused():
            guest.resume()

    result = backup(engine, ask(guest, start_paused=True), Ties(uuid.uuid4().hex, resume))
    assert isinstance(result, BackupResult)


# -- what does not work at all ---------------------------------------------------------------------


def test_a_domain_on_a_block_device_can_be_backed_up_while_it_is_shut_off(
    boot: Boot, points: TakePoints
) -> None:
    guest = boot(RAW)
    guest.shutdown_clean()
    image = guest.image("vda")
    losetup = ["losetup", "-f", "--show", str(image)]
    device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
    try:
        redefined(
            guest,
            r"type='file'( device='disk'.*?<source) file='[^']*'",
            rf"type='block'\1 dev='{device}'",
        )
        points(guest).back_up()
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


# -- what is left behind ---------------------------------------------------------------------------


def test_an_export_that_dies_before_its_first_disk_is_served_gives_the_nbd_server_back(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = LibvirtMonitor.execute

    def dies(self: LibvirtMonitor, command: str, **arguments: Any) -> Any:
        return kill() if command == "block-export-add" else execute(self, command, **arguments)

    with worker_that_dies(monkeypatch) as patch:
        patch.setattr(LibvirtMonitor, "execute", dies)
        backup(engine, ask(guest, sync="none"), Ties(uuid.uuid4().hex))
    with Open(engine, guest) as export:
        export.close()
    assert_nothing_remains(engine, guest)


def test_a_cancelled_backup_of_a_domain_undefined_meanwhile_leaves_nothing(
    guest: Guest, engine: Engine
) -> None:
    guest.shutdown_clean()
    connection, xml = guest.domain.connect(), guest.domain.XMLDesc()
    with Running(engine, guest) as running:
        guest.domain.undefine()
        try:
            engine.journal.wishes(running.task_id).touch()
            assert isinstance(running.raised(), VirtvaultError)
            tidy(engine)
            left = engine.journal.all()
        finally:
            guest.domain = connection.defineXML(xml)
    assert not left


def test_a_repository_unmounted_at_the_undo_is_cleared_when_it_is_back(
    guest: Guest, engine: Engine
) -> None:
    mount_point = Path(engine.settings.repositories["main"].path)
    away = mount_point.with_name("away")
    with Running(engine, guest) as running:
        mount_point.rename(away)
        mount_point.mkdir()
        engine.journal.wishes(running.task_id).touch()
        running.raised()
    mount_point.rmdir()
    away.rename(mount_point)
    tidy(engine)
    assert_nothing_remains(engine, guest)


def test_scratch_is_given_back_though_the_repository_is_away(guest: Guest, engine: Engine) -> None:
    mount_point = Path(engine.settings.repositories["main"].path)
    away = mount_point.with_name("away")
    with Running(engine, guest) as running:
        mount_point.rename(away)
        engine.journal.wishes(running.task_id).touch()
        running.raised()
    tidy(engine)
    assert files(engine.settings.scratch) == []


def test_a_repository_whose_server_died_is_an_error_of_ours(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount_point = Path(engine.settings.repositories["main"].path)
    exists = Path.exists

    def stale(self: Path) -> bool:
        if self.is_relative_to(mount_point):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return exists(self)

    with Running(engine, guest) as running, monkeypatch.context() as patch:
        patch.setattr(Path, "exists", stale)
        engine.journal.wishes(running.task_id).touch()
        assert isinstance(running.raised(), Cancelled)
    tidy(engine)


def test_a_worker_that_dies_after_it_marked_the_images_leaves_no_lock_on_them(
    guest: Guest, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = points(guest)
    chain.take()
    guest.shutdown_clean()
    edit = offline.edit

    def edited(*arguments: Any) -> None:
        edit(*arguments)
        raise Killed

    with worker_that_dies(monkeypatch) as patch:
        patch.setattr(offline, "edit", edited)
        run(engine, ask(guest))
    guest.start()
    guest.qemu_io("vda", "write -P 2 2M 1M")
    assert disk_of(chain.take(), "vda").sync == "incremental"
    assert_nothing_remains(engine, guest)
    chain.prove_all()


# -- what blocks the next backup -------------------------------------------------------------------


@pytest.mark.parametrize("why", ["its repository is gone", "a bitmap is inconsistent"])
def test_a_committed_run_that_cannot_be_settled_blocks_no_backup(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch, workdir: Path, why: str
) -> None:
    (workdir / "other").mkdir()
    other = RepositorySettings("other", str(workdir / "other"))
    main = engine.settings.repositories["main"]
    both = with_settings(engine, repositories={"main": main, "other": other})
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vda"), name="mine", persistent=True)
    with worker_that_dies(monkeypatch) as patch:
        patch.setattr("workers.backup.settle", kill)
        run(both, ask(guest, repository="main", bitmap="mine"))
    if why == "its repository is gone":
        Path(main.path).rename(workdir / "away")
    else:
        guest.shutdown_clean()
        guest.start()
        guest.kill_qemu()
        guest.start()
    tidy(both)
    run(both, ask(guest, repository="other"))


def test_a_journal_of_another_version_does_not_stop_the_host(guest: Guest, engine: Engine) -> None:
    runs = Path(engine.settings.state_dir, "runs")
    runs.mkdir(parents=True)
    other = Run("other", "backup", {}, "gone", str(uuid.uuid4()), "main", "point", "then")
    (runs / "other.json").write_text(json.dumps(asdict(other) | {"added": "by a later version"}))
    run(engine, ask(guest))


def test_a_task_killed_while_standing_is_done_though_its_domain_was_shut_off_meanwhile(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = uuid.uuid4().hex
    with worker_that_dies(monkeypatch) as patch:
        patch.setattr(isolation, "add_filter", kill)
        run(engine, ask(guest), task_id)
    guest.shutdown_clean()
    run(engine, ask(guest), task_id)


# -- exports, and a libvirtd that restarts ---------------------------------------------------------


@contextmanager
def libvirt_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody reaches libvirt, as while libvirtd restarts; QEMU does not notice."""

    def away(_: Hypervisor) -> None:
        raise NotReachable("libvirt does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(Hypervisor, "connection", away)
        yield


def test_an_export_outlives_a_restart_of_libvirtd(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Open(engine, guest) as export:
        with libvirt_away(monkeypatch):
            export._thread.join(2.5)
        alive = export._thread.is_alive()
    tidy(engine)
    assert alive


def test_a_backup_of_a_shut_off_domain_outlives_a_restart_of_libvirtd(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.shutdown_clean()
    with Running(engine, guest, speed=24 * MIB) as running:
        with libvirt_away(monkeypatch):
            running._thread.join(1)
        running.result()


def test_an_export_whose_qemu_stalls_ends_with_an_error_of_ours(
    guest: Guest, engine: Engine
) -> None:
    hasty = with_settings(engine, stall_seconds=1, qmp_timeout=3)
    pid = int(Path(f"/run/libvirt/qemu/{guest.name}.pid").read_text())
    with Open(hasty, guest) as export:
        os.kill(pid, signal.SIGSTOP)
        try:
            export._thread.join(8)
        finally:
            os.kill(pid, signal.SIGCONT)
        error = export.raised()
    tidy(engine)
    assert isinstance(error, VirtvaultError)


@pytest.mark.parametrize("step", ["remember", "undo"])
def test_an_export_whose_worker_died_as_it_closed_it_is_closed(
    guest: Guest, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("workers.recovery.Undo.all", kill if step == "undo" else lambda _: None)
        patch.setattr("workers.backup._mark_failed", lambda *_: None)
        if step == "remember":
            patch.setattr(Journal, "remember", kill)
        with Open(engine, guest) as export:
            engine.journal.wishes(export.task_id).touch()
            export.raised()
    again = Open(engine, guest, task_id=export.task_id)
    again._thread.start()
    assert again.close().state == "closed"


# -- restore of a top ------------------------------------------------------------------------------


def test_a_backing_image_that_has_its_data_in_another_file_gets_no_top(
    boot: Boot, points: TakePoints, workdir: Path
) -> None:
    guest = boot(VDA)
    guest.shutdown_clean()
    base, data = guest.image("vda"), workdir / "outside.raw"
    base.unlink()
    options = f"data_file={data},data_file_raw=on"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, base, "64M")
    data.chmod(0o666)
    guest.start()
    snapshot(guest, "vda", guest.directory / f"{guest.name}-overlay")
    result = points(guest).back_up(sync="top")
    assert disk_of(result, "vda").sync == "full"
    assert "is not one file" in disk_of(result, "vda").reason
