"""Older QEMUs, from 2.12 to 7.0: the same byte comparisons by the ways they have.

The real QEMU here is newer; ``qemu_as_of`` takes from it what an older one would not have.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
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
    bitmaps,
    committed,
    disk_of,
    flat_copy,
    give_new_content,
    image_of,
    snapshot,
    syncs,
)
from tests.lab import DiskSpec, Guest, assert_same
from virtvault.errors import Cancelled, JobFailed, NotSupported
from virtvault.models import BackupRequest, BackupResult
from workers.backup import backup
from workers.engine import Engine, Ties
from workers.hypervisor import LibvirtMonitor
from workers.jobs import Detached

VERSIONS = ("2.12", "3.1", "4.0", "4.1", "5.2", "7.0")
every_version = pytest.mark.parametrize("version", VERSIONS)

VDB = DiskSpec("vdb", "qcow2", 64 * MIB)


@pytest.fixture
def older(engine: Engine) -> Callable[[str], Engine]:
    def make(version: str) -> Engine:
        return with_settings(engine, qemu_as_of=version)

    return make


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands and the transactions' actions that QEMU is given from now on."""
    given: list[str] = []
    execute = LibvirtMonitor.execute

    def noted(self: LibvirtMonitor, command: str, **arguments: object) -> object:
        actions = arguments.get("actions")
        given.append(command)
        given.extend(a["type"] for a in actions or ())  # type: ignore[attr-defined]
        return execute(self, command, **arguments)

    monkeypatch.setattr(LibvirtMonitor, "execute", noted)
    return given


@every_version
def test_a_chain_of_all_kinds_of_disks_equals_the_disks_at_their_instants(
    boot: Boot, points: TakePoints, older: Callable[[str], Engine], version: str
) -> None:
    engine = older(version)
    guest = boot(
        VDA,
        VDB_RAW,
        DiskSpec("sda", "qcow2", 64 * MIB, bus="scsi"),
        DiskSpec("vdc", "raw", 64 * MIB, iothread=True),
    )
    chain = Points(engine, guest, points(guest).directory, [])
    for value in range(4):
        give_new_content(guest, value + 1)
        for target in guest.disks:
            guest.qemu_io(target, f"write -z {2 + value}M 128k")
            guest.qemu_io(target, f"discard {9 + value}M 256k")
        result = chain.take()
        assert set(syncs(result).values()) == {"incremental" if value else "full"}
        assert not result.isolated
        assert any("not isolated: QEMU " + version in note for note in result.notes)
        assert_nothing_remains(engine, guest)
        ours = [n for n in bitmaps(guest) if "/virtvault" in n and not n.endswith(".witness")]
        assert len(ours) == len(guest.disks) * (2 if version in ("2.12", "3.1") else 1)
    chain.prove_all()


@pytest.mark.parametrize(
    ("version", "copies", "dismisses"),
    [
        ("2.12", "drive-backup", "block-job-dismiss"),
        ("4.0", "blockdev-backup", "job-dismiss"),
        ("7.0", "blockdev-backup", "job-dismiss"),
    ],
)
def test_the_commands_are_those_that_the_version_has(
    boot: Boot,
    points: TakePoints,
    older: Callable[[str], Engine],
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    copies: str,
    dismisses: str,
) -> None:
    guest = boot(VDA)
    chain = Points(older(version), guest, points(guest).directory, [])
    give_new_content(guest, 1)
    chain.take()
    given = spy(monkeypatch)
    give_new_content(guest, 2)
    assert syncs(chain.take()) == {"vda": "incremental"}
    assert {"drive-backup", "blockdev-backup"} & set(given) == {copies}
    assert {"job-dismiss", "block-job-dismiss"} & set(given) == {dismisses}
    assert "qom-set" not in given
    assert ("block-dirty-bitmap-merge" in given) == (version != "2.12")
    chain.prove_all()


@every_version
def test_writes_during_the_copy_are_in_the_next_point_and_not_in_this_one(
    boot: Boot, older: Callable[[str], Engine], workdir: Path, version: str
) -> None:
    engine = older(version)
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 14M")
    reference = guest.reference("vda", workdir / "before")
    with Running(engine, guest) as running:
        guest.qemu_io("vda", "write -P 2 4M 4M")
        running.hurry()
        first = running.result()
    assert_same(image_of(engine, first), "qcow2", reference, "qcow2")
    after = guest.reference("vda", workdir / "after")
    second = take(engine, guest)
    assert disk_of(second, "vda").sync == "incremental"
    assert_same(image_of(engine, second), "qcow2", after, "qcow2")
    assert_nothing_remains(engine, guest)


@every_version
def test_an_external_snapshot_between_points_loses_no_write(
    boot: Boot, older: Callable[[str], Engine], workdir: Path, version: str
) -> None:
    engine = older(version)
    guest = boot(VDA)
    give_new_content(guest, 1)
    take(engine, guest)
    guest.qemu_io("vda", "write -P 2 10M 1M")
    overlay = workdir / "guest" / "overlay.qcow2"
    snapshot(guest, "vda", overlay)
    guest.qemu_io("vda", "write -P 3 12M 1M")
    expected = flat_copy(guest, "vda", overlay, workdir / "expected")
    result = take(engine, guest)
    done = disk_of(result, "vda")
    if version in ("2.12", "3.1", "4.0"):
        assert done.sync == "full"
        assert done.reason
    else:
        assert done.sync == "incremental"
    assert_same(image_of(engine, result), "qcow2", expected, "qcow2")


@every_version
def test_a_failed_backup_costs_at_most_a_full_and_never_a_write(
    boot: Boot, points: TakePoints, older: Callable[[str], Engine], version: str
) -> None:
    engine = older(version)
    guest = boot(VDA, VDB)
    chain = Points(engine, guest, points(guest).directory, [])
    give_new_content(guest, 1)
    chain.take()
    give_new_content(guest, 2)
    guest.qemu_io("vdb", "write -P 3 0 14M")
    before = committed(engine)
    # The job of vda ends well, and QEMU clears what it copied from; that of vdb is cancelled.
    with Running(engine, guest) as running:
        guest.qmp("block-job-cancel", device=f"virtvault-{running.tag}-vdb", force=True)
        assert isinstance(running.raised(), JobFailed)
    assert committed(engine) == before
    assert_nothing_remains(engine, guest)
    give_new_content(guest, 4)
    result = chain.take()
    spared = version in ("2.12", "3.1")
    assert set(syncs(result).values()) == {"full" if spared else "incremental"}
    chain.prove_all()


@pytest.mark.parametrize("version", ["2.12", "4.0"])
def test_a_job_that_ended_well_before_the_domain_was_shut_off_is_not_trusted_twice(
    boot: Boot, points: TakePoints, older: Callable[[str], Engine], version: str
) -> None:
    """The worker is away, the jobs end, QEMU stores its bitmaps: the used one too."""
    engine = older(version)
    guest = boot(VDA)
    chain = Points(engine, guest, points(guest).directory, [])
    give_new_content(guest, 1)
    chain.take()
    guest.qemu_io("vda", "write -P 3 0 14M")
    with Running(engine, guest, speed=8 * MIB) as running:
        running.stopping.set()
        assert isinstance(running.raised(), Detached)
    running.hurry()
    guest.shutdown_clean()
    guest.start()
    with pytest.raises(Exception, match=r"gone|ended"):
        take(engine, guest, task_id=running.task_id)
    result = chain.take()
    assert disk_of(result, "vda").sync == ("full" if version == "2.12" else "incremental")
    chain.prove_all()


@pytest.mark.parametrize("version", ["2.12", "4.0", "7.0"])
def test_a_cancelled_backup_leaves_the_guest_its_writes(
    boot: Boot, older: Callable[[str], Engine], version: str
) -> None:
    """The jobs end before their targets do: a write that one copies for does not fail."""
    engine = older(version)
    guest = boot(VDA)
    guest.qemu_io("vda", "write -P 1 0 14M")
    with Running(engine, guest) as running:
        engine.journal.wishes(running.task_id).touch()
        for at in range(14):
            guest.qemu_io("vda", f"write -P 2 {at}M 64k")
        assert isinstance(running.raised(), Cancelled)
    assert_nothing_remains(engine, guest)


def test_top_by_an_older_qemu_holds_the_active_layer(
    boot: Boot, older: Callable[[str], Engine], workdir: Path
) -> None:
    engine = older("4.2")
    guest = boot(VDA)
    give_new_content(guest, 1)
    overlay = workdir / "guest" / "overlay.qcow2"
    snapshot(guest, "vda", overlay)
    give_new_content(guest, 2)
    expected = flat_copy(guest, "vda", overlay, workdir / "expected")
    result = take(engine, guest, sync="top")
    assert disk_of(result, "vda").sync == "top"
    assert_same(image_of(engine, result), "qcow2", expected, "qcow2")


def test_none_is_refused_where_it_would_put_the_guest_at_risk(
    boot: Boot, older: Callable[[str], Engine]
) -> None:
    engine = older("6.2")
    guest = boot(VDA)
    with pytest.raises(NotSupported, match=r"7\.1 can"):
        take(engine, guest, sync="none")
    assert_nothing_remains(engine, guest)


def test_after_an_update_of_qemu_the_chain_goes_on_isolated(
    boot: Boot, points: TakePoints, engine: Engine, older: Callable[[str], Engine]
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    for number, version in enumerate(("2.12", "4.0", "7.0", "")):
        chain.engine = older(version)
        give_new_content(guest, number + 1)
        result = chain.take()
        assert result.isolated == (version == "")
        assert syncs(result) == {"vda": "incremental" if number else "full"}
    assert_one_bitmap_per_disk(guest, result)
    chain.prove_all()


def take(engine: Engine, guest: Guest, sync: str = "auto", task_id: str = "") -> BackupResult:
    request = BackupRequest(domain=guest.domain.name(), sync=sync)
    result = backup(engine, request, Ties(task_id or uuid.uuid4().hex))
    assert isinstance(result, BackupResult)
    return result
