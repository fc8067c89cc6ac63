"""What a review proved wrong once, each as the sentence that holds now."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from tests.integration.conftest import MIB, Points
from tests.integration.scenes import (
    Running,
    block_jobs,
    disk_of,
    flat_copy,
    image_of,
    pivoted,
    snapshot,
    until,
)
from tests.lab import DiskSpec, Guest, assert_same
from virtvault.errors import (
    Cancelled,
    DestinationExists,
    InvalidRequest,
    MonitorError,
    NotReachable,
    RepositoryUnusable,
    UnknownPoint,
)
from virtvault.models import BackupRequest, RestoreRequest
from workers import instant, job_control, recovery
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.hypervisor import LibvirtMonitor
from workers.jobs import Detached
from workers.repository import open_repository
from workers.restore import copying, restore

VDA = DiskSpec("vda", "qcow2", 64 * MIB)
Boot = Callable[..., Guest]
TakePoints = Callable[[Guest], Points]


def test_a_snapshot_between_plan_and_instant_loses_no_write(
    boot: Boot, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 8M")
    chain.take()
    overlay = guest.directory / f"{guest.name}-overlay"
    real = instant.take
    reference: list[Path] = []

    def take(monitor: Any, settings: Any, **more: Any) -> Any:
        """What another tool may do while the guard starts and the agent freezes."""
        snapshot(guest, "vda", overlay)
        guest.qemu_io("vda", "write -P 3 4M 1M")
        reference.append(flat_copy(guest, "vda", overlay, chain.directory / "flat"))
        return real(monitor, settings, **more)

    with monkeypatch.context() as patch:
        patch.setattr(instant, "take", take)
        result = chain.back_up()
    assert disk_of(result, "vda").sync == "incremental"
    assert_same(image_of(engine, result), "qcow2", reference[0], "qcow2")


def test_an_overlay_whose_file_name_comes_again_is_not_taken_for_the_old_one(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 8M")
    chain.take()
    overlay = guest.directory / f"{guest.name}-nightly"
    snapshot(guest, "vda", overlay)
    guest.qemu_io("vda", "write -P 3 4M 1M")
    chain.back_up()
    guest.domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    until(lambda: [job["ready"] for job in block_jobs(guest).values()] == [True], "the commit")
    until(lambda: pivoted(guest), "the pivot")
    overlay.unlink(missing_ok=True)
    guest.qemu_io("vda", "write -P 9 6M 1M")  # between two nights, in the base
    snapshot(guest, "vda", overlay)
    guest.qemu_io("vda", "write -P 5 5M 64k")
    reference = flat_copy(guest, "vda", overlay, chain.directory / "flat")
    assert_same(image_of(engine, chain.back_up()), "qcow2", reference, "qcow2")


def test_an_unmounted_repository_is_not_taken_for_a_new_one(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    chain = points(boot(VDA))
    chain.take()
    mount_point = Path(engine.settings.repositories["main"].path)
    mount_point.rename(f"{mount_point}.elsewhere")
    mount_point.mkdir()
    with pytest.raises(RepositoryUnusable, match="not mounted"):
        chain.back_up()
    assert list(mount_point.iterdir()) == []


def test_a_thaw_that_fails_is_tried_on_by_the_guard(
    boot: Boot, points: TakePoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA, boot=True)
    guest.wait_ready()
    real = LibvirtMonitor.agent

    def agent(self: LibvirtMonitor, command: str, seconds: int) -> Any:
        if command == "guest-fsfreeze-thaw":
            raise MonitorError("the agent did not answer in time")
        return real(self, command, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(LibvirtMonitor, "agent", agent)
        result = points(guest).back_up()
    assert any("left to the guard" in note for note in result.notes)
    domain = guest.domain
    until(lambda: "thawed" in _freeze_status(domain), "the guard's thaw")


def _freeze_status(domain: libvirt.virDomain) -> str:
    command = '{"execute":"guest-fsfreeze-status"}'
    return str(libvirt_qemu.qemuAgentCommand(domain, command, 5, 0))


def test_what_fails_after_the_commit_undoes_nothing(
    boot: Boot, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    chain.take()
    guest.qemu_io("vda", "write -P 2 0 1M")

    def away(*_: Any) -> None:
        raise NotReachable("libvirt does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "remove_bitmaps", away)
        chain.take()
    (run,) = engine.journal.all()
    assert run.phase == "committed"
    # As a kill right after the rename leaves it, and a next worker that did not reach libvirt.
    run.phase, run.error = "copied", "libvirt does not answer."
    engine.journal.write(run)
    recovery.tidy(engine)
    assert disk_of(chain.taken[-1][0], "vda").bitmap in disk_bitmaps(guest)
    assert engine.journal.all() == []
    guest.qemu_io("vda", "write -P 4 2M 1M")
    assert disk_of(chain.take(), "vda").sync == "incremental"
    chain.prove_all()


def disk_bitmaps(guest: Guest) -> set[str]:
    nodes = guest.qmp("query-named-block-nodes", flat=True)
    return {bitmap["name"] for node in nodes for bitmap in node.get("dirty-bitmaps", ())}


def test_a_committed_task_told_again_is_answered_while_another_is_at_work(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 16M")
    task_id = uuid.uuid4().hex
    request = BackupRequest(domain=guest.name)
    first = backup(engine, request, Ties(task_id))
    with Running(engine, guest, sync="full", speed=4 * MIB):
        assert backup(engine, request, Ties(task_id)).point == first.point


def test_a_cancel_while_no_worker_lives_is_not_forgotten(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(VDA)
    task_id = uuid.uuid4().hex
    request = BackupRequest(domain=guest.name)

    def leave(*_: Any, **__: Any) -> None:
        raise Detached  # the journal is left as a kill would leave it

    with monkeypatch.context() as patch:
        patch.setattr(instant, "take", leave)
        with pytest.raises(Detached):
            backup(engine, request, Ties(task_id))
    job_control.cancel(engine, task_id)
    with pytest.raises(Cancelled):
        backup(engine, request, Ties(task_id))
    assert engine.journal.all() == []


def test_a_restore_told_twice_is_done_once_and_overwrites_nothing(
    boot: Boot, points: TakePoints, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = points(boot(VDA))
    point = chain.back_up().point
    request = RestoreRequest(point=point, to=str(chain.directory / "once"))
    task_id = uuid.uuid4().hex
    assert restore(engine, request, Ties(task_id)) == restore(engine, request, Ties(task_id))

    precious = chain.directory / "twice" / "vda.qcow2"
    real = copying.create_image

    def appear(*arguments: Any, **more: Any) -> None:
        real(*arguments, **more)
        precious.write_text("precious")

    monkeypatch.setattr(copying, "create_image", appear)
    with pytest.raises(DestinationExists):
        restore(engine, RestoreRequest(point=point, to=str(precious.parent)), Ties("again"))
    assert precious.read_text() == "precious"


def test_ids_that_are_paths_or_patterns_are_refused(boot: Boot, engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="task id"):
        job_control.cancel(engine, "../../../elsewhere/x")
    repository = open_repository(engine.settings, "main")
    for pattern in ("*", "", "../..", "2*"):
        with pytest.raises(UnknownPoint):
            repository.find(pattern)
