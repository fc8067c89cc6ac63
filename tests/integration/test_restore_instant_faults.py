"""What may happen around a guest that runs from a point: none of it takes its data or the point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path

import libvirt
import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import until
from tests.integration.test_restore import assert_nothing_remains, event_loop
from tests.integration.test_restore_domain import new_name
from tests.integration.test_restore_instant import Booting, assert_content, name, pointed
from tests.lab import Guest
from tests.lab.monitor import Monitor
from virtvault.errors import Cancelled, InvalidRequest, NotReachable, WorkFailed
from virtvault.models import PruneRequest, RestoreRequest
from workers.engine import Engine, Ties
from workers.jobs import Detached
from workers.prune import prune
from workers.repository.sidecar import PROTECTED
from workers.restore import daemon_of, pulling, restore
from workers.restore.instant import Instant

__all__ = ["name", "pointed"]

Pointed = tuple[Guest, str, dict[str, Path]]
SNAPSHOT = (
    "<domainsnapshot><disks><disk name='vda' snapshot='no'/>"
    "<disk name='vdb' snapshot='external'><source file='{}'/></disk></disks></domainsnapshot>"
)
FLAGS = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
)
WRITTEN = "read -P 0x55 4M 1M"


def detach(booting: Booting) -> None:
    booting.stopping.set()
    assert isinstance(booting.raised(), Detached)


def end_for_good(domain: libvirt.virDomain) -> None:
    if domain.isActive():
        domain.destroy()


def test_what_a_guest_wrote_and_went_off_before_its_worker_knew_that_it_ran_stays(
    pointed: Pointed,
    engine: Engine,
    connection: libvirt.virConnect,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    _, point, _ = pointed

    def dies(*_: object) -> None:
        raise Detached

    task = uuid.uuid4().hex
    with monkeypatch.context() as patched:
        patched.setattr(Instant, "_booted", dies)
        with pytest.raises(Detached), event_loop():
            restore(engine, RestoreRequest(point=point, name=name, mode="instant"), Ties(task))
    domain = connection.lookupByName(name)
    Monitor(domain, Path(f"/var/log/libvirt/qemu/{name}.log")).qemu_io("vda", "write -P 0x55 4M 1M")
    domain.destroy()

    monkeypatch.setattr(pulling, "SHUT_OFF", 0.0)
    with Booting(engine, point, name, task_id=task, speed=0) as second:
        second.result()
    assert connection.lookupByName(name).UUIDString() == domain.UUIDString()
    overlay = second.directory / "vda.qcow2"
    read = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", WRITTEN, overlay], capture_output=True, text=True
    )
    assert "read 1048576/1048576" in read.stdout and "failed" not in read.stdout, read
    assert_nothing_remains(engine)


def test_disks_that_grow_and_a_snapshot_meanwhile_do_not_keep_it_from_its_end(
    pointed: Pointed,
    engine: Engine,
    connection: libvirt.virConnect,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    guest, point, references = pointed
    monkeypatch.setattr(pulling, "SHUT_OFF", 0.0)
    back: list[str] = []
    monkeypatch.setattr(pulling.Pulling, "_back_again", lambda _, target: back.append(target))
    with Booting(engine, point, name, speed=MIB) as booting:
        domain = connection.lookupByName(name)
        domain.suspend()  # else its BIOS, which finds no system, may end it
        domain.blockResize("vdb", 96 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        domain.snapshotCreateXML(SNAPSHOT.format(booting.directory / "top.qcow2"), FLAGS)
        until(lambda: booting.hurry() and booting.ended(), "the end of both pulls", 60)
        result = booting.result()
        assert domain.isActive()
    assert any("managedsave" in note for note in result.notes)
    # QEMU has nothing of the point open under the snapshot either.
    nodes = Monitor(domain, Path(f"/var/log/libvirt/qemu/{name}.log")).qmp(
        "query-named-block-nodes", flat=True
    )
    assert "nbd" not in {node["drv"] for node in nodes}
    assert not back
    end_for_good(domain)
    domain.create()  # on the snapshot, without the point
    end_for_good(domain)
    # Compared at the point's size: what it has grown by is the guest's.
    for overlay in (booting.directory / "vdb.qcow2",):
        subprocess.run(
            ["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", overlay, str(64 * MIB)],
            check=True,
        )
    assert_content(guest, booting.directory, references)
    assert_nothing_remains(engine)


def test_a_point_that_two_guests_run_from_is_protected_until_the_second_stands_alone(
    pointed: Pointed, engine: Engine, connection: libvirt.virConnect, workdir: Path, name: str
) -> None:
    _, point, _ = pointed
    protected = next((workdir / "repo").glob(f"*/{point}")) / PROTECTED
    with Booting(engine, point, new_name()) as first, Booting(engine, point, name) as second:
        engine.journal.wishes(first.task_id).touch()
        assert isinstance(first.raised(), Cancelled)
        assert name in json.loads(protected.read_text())["reason"]
        assert first.name not in protected.read_text()
        with pytest.raises(InvalidRequest, match=f"is protected: domain {name} runs from it"):
            prune(engine, PruneRequest(points=(point,)), Ties(uuid.uuid4().hex))
        # Thrown away by hand: said, not looped over; what of the point is kept for it is let go.
        domain = connection.lookupByName(name)
        domain.destroy()
        domain.undefine()
        for overlay in second.directory.glob("*.qcow2"):
            overlay.unlink()
        gone = second.raised()
        assert isinstance(gone, WorkFailed) and "was undefined and" in gone.message, gone
    assert not protected.exists()
    assert_nothing_remains(engine)


def test_memory_saved_at_the_end_starts_without_the_point_and_libvirt_may_be_away(
    pointed: Pointed,
    engine: Engine,
    connection: libvirt.virConnect,
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    _, point, _ = pointed
    real = Instant._stand_alone
    calls: list[bool] = []

    def away_once(story: Instant) -> None:
        if calls:
            return real(story)
        calls.append(True)
        domain = connection.lookupByName(name)
        domain.suspend()
        domain.managedSave()
        raise NotReachable("libvirt is away.", "Wait.")

    monkeypatch.setattr(Instant, "_stand_alone", away_once)
    with Booting(engine, point, name, speed=0) as booting:
        booting.result()
    domain = connection.lookupByName(name)
    assert calls and domain.hasManagedSaveImage()
    (workdir / "repo").rename(workdir / "elsewhere")
    domain.create()
    assert domain.isActive() and not domain.hasManagedSaveImage()
    assert "nbd" not in domain.XMLDesc()
    end_for_good(domain)
    assert_nothing_remains(engine)


def test_a_worker_that_finds_no_repository_waits_for_it_and_can_be_cancelled(
    pointed: Pointed, engine: Engine, connection: libvirt.virConnect, workdir: Path, name: str
) -> None:
    _, point, _ = pointed
    with Booting(engine, point, name) as first:
        detach(first)
    os.kill(first.daemon_pid(), signal.SIGKILL)
    until(lambda: not daemon_of(engine, first.task_id).alive(), "the daemon's end")
    repository, away = workdir / "repo", workdir / "away"
    repository.rename(away)
    second = Booting(Engine.of(engine.settings), point, name, task_id=first.task_id)
    second._thread.start()
    until(lambda: bool(second.phases), "the wait")
    assert not second.ended() and connection.lookupByName(name).isActive()
    away.rename(repository)
    until(second.pulling, "the pull", 30)
    detach(second)

    repository.rename(away)
    third = Booting(Engine.of(engine.settings), point, name, task_id=first.task_id)
    third._thread.start()
    until(lambda: bool(third.phases), "the wait")
    engine.journal.wishes(first.task_id).touch()
    cancelled = third.raised()
    assert isinstance(cancelled, Cancelled) and "virtvault unprotect" in cancelled.mend
    assert name not in [domain.name() for domain in connection.listAllDomains()]
    assert not list(first.directory.glob("*.qcow2"))
    assert_nothing_remains(engine)
