"""Bitmaps by hand: what is listed and done is what QEMU and the images have, and no backup of
virtvault's or libvirt's is ever harmed by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest
from click.testing import CliRunner

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    VDA,
    VDB_RAW,
    Boot,
    Running,
    TakePoints,
    bitmaps,
    disk_of,
    flat_copy,
    give_new_content,
    image_of,
    node_of,
    pivoted,
    qemu_img,
    snapshot,
    until,
)
from tests.lab import DiskSpec, Guest, Hypervisor, Stack, assert_same
from virtvault.cli.main import cli
from virtvault.errors import (
    DomainBusy,
    InvalidRequest,
    MonitorError,
    ProtectedBitmap,
    UnknownBitmap,
    UnknownDisk,
    UnknownDomain,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import BitmapChanges, BitmapInfo, BitmapRequest
from workers import bitmaps as by_hand
from workers.bitmap_changes import Change, in_qemu
from workers.bitmap_view import look
from workers.engine import Engine

VDB = DiskSpec("vdb", "qcow2", 64 * MIB)
VDC_RAW = DiskSpec("vdc", "raw", 64 * MIB)
EMPTY_CDROM = "<disk type='file' device='cdrom'><target dev='sdc' bus='sata'/><readonly/></disk>"

Verb = Callable[[Engine, BitmapRequest], Any]


def ask(verb: Verb, engine: Engine, guest: Guest, name: str = "*", **fields: Any) -> Any:
    return verb(engine, BitmapRequest(guest.name, name, **fields))


def listed(engine: Engine, guest: Guest) -> list[BitmapInfo]:
    found: list[BitmapInfo] = ask(by_hand.listing, engine, guest)
    return found


def in_qemu_now(guest: Guest, target: str, name: str) -> dict[str, Any] | None:
    return bitmaps(guest).get(f"{node_of(guest, target)}/{name}")


def in_image(guest: Guest, target: str) -> dict[str, tuple[int, set[str]]]:
    """Granularity and flags of the bitmaps stored in a disk's first image."""
    info = json.loads(qemu_img("info", "-U", "--output=json", guest.image(target)))
    stored = info["format-specific"]["data"].get("bitmaps", ())
    return {b["name"]: (b["granularity"], set(b["flags"])) for b in stored}


def everything(guest: Guest) -> object:
    """All bitmaps there are, wherever they are now."""
    if guest.is_active():
        return bitmaps(guest)
    return {t: in_image(guest, t) for t, spec in guest.disks.items() if spec.format == "qcow2"}


def assert_refused(
    verb: Verb,
    engine: Engine,
    guest: Guest,
    error: type[VirtvaultError],
    *words: str,
    name: str = "mine",
    **fields: Any,
) -> str:
    """Refused for that reason with a mend, which is given back, and no bitmap has changed."""
    before = everything(guest)
    with pytest.raises(VirtvaultError) as caught:
        ask(verb, engine, guest, name, **fields)
    assert type(caught.value) is error, caught.value
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.mend
    assert everything(guest) == before
    return caught.value.mend


# -- a domain that runs ----------------------------------------------------------------------------


def test_a_bitmap_added_by_hand_marks_what_is_written_until_it_is_cleared_and_removed(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, VDB, extra_devices=EMPTY_CDROM)
    done: BitmapChanges = ask(by_hand.add, engine, guest, "mine", granularity=4096)
    assert [(b.target, b.granularity, b.persistent, b.dirty) for b in done.bitmaps] == [
        ("vda", 4096, True, 0),
        ("vdb", 4096, True, 0),
    ]
    assert done.skipped == {"sdc": "cdrom drive, empty"}
    guest.qemu_io("vda", "write -P 1 1M 8k")
    assert [(b.target, b.dirty) for b in listed(engine, guest)] == [("vda", 8192), ("vdb", 0)]
    assert in_qemu_now(guest, "vda", "mine")["count"] == 8192  # type: ignore[index]

    cleared = ask(by_hand.clear, engine, guest, "mine")
    assert [(b.target, b.dirty) for b in cleared.bitmaps] == [("vda", 8192), ("vdb", 0)]
    guest.qemu_io("vda", "write -P 1 2M 4k")
    assert [(b.target, b.dirty) for b in listed(engine, guest)] == [("vda", 4096), ("vdb", 0)]

    ask(by_hand.remove, engine, guest, "mine", disks=("vdb",))
    assert [b.target for b in listed(engine, guest)] == ["vda"]
    ask(by_hand.remove, engine, guest, "mine")
    assert listed(engine, guest) == []
    assert bitmaps(guest) == {}


def test_a_persistent_bitmap_outlives_a_power_cycle_and_says_which_ones_do_not(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, VDB_RAW)
    done = ask(by_hand.add, engine, guest, "mine")
    assert [(b.target, b.persistent) for b in done.bitmaps] == [("vda", True), ("vdb", False)]
    ask(by_hand.add, engine, guest, "brief", persistent=False, disks=("vda",))
    guest.qemu_io("vda", "write -P 1 1M 64k")
    guest.power_cycle()
    (kept,) = listed(engine, guest)
    assert (kept.target, kept.name, kept.dirty, kept.state) == ("vda", "mine", 65536, "recording")
    ask(by_hand.remove, engine, guest, "mine")
    guest.power_cycle()
    assert listed(engine, guest) == []


def test_after_sigkill_a_persistent_bitmap_is_inconsistent_and_can_only_be_removed(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA)
    for name in ("mine", "other"):
        ask(by_hand.add, engine, guest, name)
    guest.power_cycle()
    guest.kill_qemu()
    assert [b.state for b in listed(engine, guest)] == ["inconsistent"] * 2
    assert_refused(by_hand.clear, engine, guest, InvalidRequest, "inconsistent", "only be removed")
    ask(by_hand.remove, engine, guest, "other")
    guest.start()
    (mine,) = listed(engine, guest)
    assert (mine.name, mine.state) == ("mine", "inconsistent")
    assert_refused(by_hand.clear, engine, guest, InvalidRequest, "inconsistent", "only be removed")
    ask(by_hand.remove, engine, guest, "mine")
    guest.power_cycle()
    assert listed(engine, guest) == []


def test_all_disks_change_or_none_does(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA, VDB)
    ask(by_hand.add, engine, guest, "mine", disks=("vda",))
    assert_refused(by_hand.add, engine, guest, InvalidRequest, "'mine' exists already on vda")
    # As where another tool makes a bitmap after the look at the disks.
    disks = look(engine, guest.name).disks
    ask(by_hand.remove, engine, guest, "mine")
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vdb"), name="mine")
    monitor = engine.hypervisor.monitor(engine.hypervisor.domain(guest.name))
    before = everything(guest)
    with pytest.raises(MonitorError, match="already exists") as caught:
        in_qemu(monitor, [Change("add", disk, "mine") for disk in disks])
    assert "Nothing was changed" in caught.value.mend
    assert everything(guest) == before
    with pytest.raises(MonitorError, match="not found"):
        in_qemu(monitor, [Change("remove", disk, "mine") for disk in reversed(disks)])
    assert everything(guest) == before


def test_a_pattern_removes_all_that_match_and_a_name_only_itself(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA)
    for name in ("a1", "a2", "a*", "b"):
        ask(by_hand.add, engine, guest, name)
    ask(by_hand.remove, engine, guest, "a*")
    assert [b.name for b in listed(engine, guest)] == ["a1", "a2", "b"]
    ask(by_hand.remove, engine, guest, "a?")
    assert [b.name for b in listed(engine, guest)] == ["b"]
    assert_refused(by_hand.clear, engine, guest, UnknownBitmap, "'?'", name="?")


def test_a_bitmap_that_a_block_job_uses_is_busy(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    ask(by_hand.add, engine, guest, "mine")
    guest.qemu_io("vda", "write -P 1 0 32M")
    void = {"driver": "null-co", "node-name": "void", "size": 64 * MIB}
    guest.qmp("blockdev-add", **void)
    guest.qmp(
        "blockdev-backup",
        **{"job-id": "theirs", "device": node_of(guest, "vda"), "target": "void"},
        **{"sync": "incremental", "bitmap": "mine", "speed": 1},
    )
    (mine,) = listed(engine, guest)
    assert mine.state == "busy"
    for verb in (by_hand.clear, by_hand.remove):
        assert_refused(verb, engine, guest, DomainBusy, "mine", "vda", "in use by a block job")
    guest.qmp("block-job-cancel", device="theirs", force=True)
    until(lambda: listed(engine, guest)[0].state == "recording", "the job to end")
    ask(by_hand.remove, engine, guest, "mine")


def test_what_cannot_be_done_is_refused_before_anything_is_touched(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, VDB_RAW, extra_devices=EMPTY_CDROM)
    ask(by_hand.add, engine, guest, "mine", disks=("vda",))
    for verb in (by_hand.listing, by_hand.add, by_hand.clear, by_hand.remove):
        with pytest.raises(UnknownDomain, match="nobody"):
            verb(engine, BitmapRequest("nobody", "x"))
        mend = assert_refused(verb, engine, guest, UnknownDisk, "'vdq'", disks=("vda", "vdq"))
        assert "vda, vdb, sdc" in mend
        assert_refused(verb, engine, guest, UnknownDisk, "sdc", "cdrom", disks=("vda", "sdc"))
    for verb in (by_hand.clear, by_hand.remove):
        mend = assert_refused(verb, engine, guest, UnknownBitmap, "'yours'", name="yours")
        assert "mine" in mend
        assert_refused(verb, engine, guest, UnknownBitmap, "'mine' on vdb", disks=("vda", "vdb"))
    for disks in (("vdb",), ()):
        assert_refused(
            by_hand.add,
            engine,
            guest,
            InvalidRequest,
            *("vdb", "raw image cannot store bitmaps"),
            name="new",
            persistent=True,
            disks=disks,
        )


# -- a domain that is shut off ---------------------------------------------------------------------


def test_bitmaps_of_a_domain_that_is_shut_off_are_changed_in_its_images(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, VDB, VDC_RAW)
    guest.shutdown_clean()
    done = ask(by_hand.add, engine, guest, "mine", granularity=2**20)
    assert [(b.target, b.granularity, b.dirty) for b in done.bitmaps] == [
        ("vda", 2**20, None),
        ("vdb", 2**20, None),
    ]
    assert list(done.skipped) == ["vdc"]
    assert "raw image cannot store bitmaps" in done.skipped["vdc"]
    assert in_image(guest, "vda") == in_image(guest, "vdb") == {"mine": (2**20, {"auto"})}

    guest.start()
    guest.qemu_io("vda", "write -P 1 1M 4k")
    assert [b.dirty for b in listed(engine, guest)] == [2**20, 0]
    guest.shutdown_clean()
    ask(by_hand.clear, engine, guest, "mine")
    guest.start()
    assert [b.dirty for b in listed(engine, guest)] == [0, 0]
    guest.shutdown_clean()
    ask(by_hand.remove, engine, guest, "mine")
    assert listed(engine, guest) == []
    assert in_image(guest, "vda") == in_image(guest, "vdb") == {}


def test_a_domain_that_is_shut_off_takes_only_what_its_images_can_hold(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, VDB_RAW)
    guest.shutdown_clean()
    ask(by_hand.add, engine, guest, "mine")
    assert_refused(by_hand.add, engine, guest, InvalidRequest, "'mine' exists already on vda")
    assert_refused(by_hand.add, engine, guest, UnknownDisk, "vdb", "shut off", disks=("vdb",))
    assert_refused(by_hand.remove, engine, guest, UnknownBitmap, "'yours'", name="yours")
    assert_refused(
        by_hand.add, engine, guest, InvalidRequest, "shut off", name="new", persistent=False
    )


def test_an_image_in_use_changes_no_disk_of_a_domain_that_is_shut_off(
    boot: Boot, engine: Engine
) -> None:
    guest, other = boot(VDA, VDB), boot()
    guest.shutdown_clean()
    ask(by_hand.add, engine, guest, "mine")
    # As where the domain is just being started: somebody has the second image open.
    other.qmp(
        "blockdev-add",
        **{"driver": "qcow2", "node-name": "held"},
        file={"driver": "file", "filename": str(guest.image("vdb"))},
    )
    before = in_image(guest, "vda")
    with pytest.raises(WorkFailed, match="in use"):
        ask(by_hand.add, engine, guest, "new")
    assert in_image(guest, "vda") == before
    with pytest.raises(WorkFailed, match=r"in use.* done on vda"):
        ask(by_hand.remove, engine, guest, "mine")
    assert in_image(guest, "vda") == {}
    other.qmp("blockdev-del", **{"node-name": "held"})
    assert [b.target for b in listed(engine, guest)] == ["vdb"]


# -- whose they are --------------------------------------------------------------------------------


def checkpoint(guest: Guest, name: str) -> None:
    guest.domain.checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>", 0)


def test_a_checkpoint_of_libvirts_is_shown_and_left_to_virsh(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    checkpoint(guest, "monday")
    ask(by_hand.add, engine, guest, "mine")
    for running in (True, False):
        owners = {b.name: (b.owner, b.purpose) for b in listed(engine, guest)}
        assert owners == {"monday": ("libvirt", "checkpoint monday"), "mine": ("user", "")}
        for verb in (by_hand.clear, by_hand.remove):
            mend = assert_refused(verb, engine, guest, ProtectedBitmap, "libvirt", name="monday")
            assert f"virsh checkpoint-delete {guest.name} monday" in mend
            assert ("virsh start" in mend) is not running
        assert_refused(by_hand.remove, engine, guest, ProtectedBitmap, "monday", name="*")
        for name in ("monday", "libvirt-tmp-activewrite", "backup-vda"):
            assert_refused(by_hand.add, engine, guest, ProtectedBitmap, "libvirt", name=name)
        if running:
            guest.shutdown_clean()
    guest.start()
    guest.domain.checkpointLookupByName("monday").delete()
    assert [b.name for b in listed(engine, guest)] == ["mine"]


def test_the_name_of_libvirts_backup_bitmap_is_libvirts_while_it_backs_up(
    boot: Boot, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vda"), name="backup-vda")
    assert [b.owner for b in listed(engine, guest)] == ["user"]
    # A push backup makes this bitmap and is soon over; a pull backup stays until it is ended.
    files = workdir / "guest" / guest.name
    guest.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{files}-nbd.sock'/><disks>"
        f"<disk name='vda' type='file'><scratch file='{files}-scratch.qcow2'/></disk></disks>"
        "</domainbackup>",
        None,
    )
    assert [b.owner for b in listed(engine, guest)] == ["libvirt"]
    mend = assert_refused(by_hand.remove, engine, guest, ProtectedBitmap, name="backup-vda")
    assert f"virsh domjobinfo {guest.name}" in mend
    guest.domain.abortJob()
    until(lambda: listed(engine, guest)[0].owner == "user", "the end of libvirt's backup")
    ask(by_hand.remove, engine, guest, "backup-vda")


def test_virtvaults_own_are_shown_with_their_point_and_only_yes_removes_them(
    boot: Boot, engine: Engine, points: TakePoints
) -> None:
    guest = boot(VDA, VDB_RAW)
    chain = points(guest)
    give_new_content(guest, 1)
    first = chain.take()
    own = disk_of(first, "vda").bitmap
    (vda, witness, vdb, _) = listed(engine, guest)
    assert (vda.name, vda.owner, vda.purpose) == (
        own,
        "virtvault",
        f"point {first.point}, repository main",
    )
    assert (witness.name, witness.purpose) == (
        f"{own}.witness",
        f"witness of point {first.point}, repository main",
    )
    assert (vda.persistent, vdb.persistent) == (True, False)
    assert_refused(by_hand.clear, engine, guest, ProtectedBitmap, "virtvault's own", name=own)
    mend = assert_refused(by_hand.remove, engine, guest, ProtectedBitmap, "a full", name=own)
    assert f"virtvault bitmaps remove {guest.name} {own} --yes" in mend
    mend = assert_refused(
        by_hand.remove, engine, guest, ProtectedBitmap, "a full", name="v*", disks=("vda",)
    )
    assert f"virtvault bitmaps remove {guest.name} 'v*' --disk=vda --yes" in mend
    for name in (own, "virtvault.mine"):
        assert_refused(by_hand.add, engine, guest, ProtectedBitmap, "virtvault", name=name)

    give_new_content(guest, 2)
    ask(by_hand.remove, engine, guest, "virtvault.*", disks=("vda",), include_ours=True)
    second = chain.take()
    assert (disk_of(second, "vda").sync, disk_of(second, "vdb").sync) == ("full", "incremental")
    assert "no bitmap since the last point" in disk_of(second, "vda").reason

    guest.shutdown_clean()
    give_mine = disk_of(second, "vda").bitmap
    assert_refused(by_hand.remove, engine, guest, ProtectedBitmap, "a full", name=give_mine)
    ask(by_hand.remove, engine, guest, "virtvault.*", include_ours=True)
    assert in_image(guest, "vda") == {}
    guest.start()
    give_new_content(guest, 3)
    third = chain.take()
    assert disk_of(third, "vda").sync == "full"
    assert disk_of(third, "vda").reason
    chain.prove_all()


def test_without_virtvaults_bitmaps_libvirt_reverts_to_an_internal_snapshot(
    boot: Boot, engine: Engine, points: TakePoints
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    snap = guest.domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>")
    chain.take()
    ask(by_hand.remove, engine, guest, "virtvault.*", include_ours=True)
    guest.domain.revertToSnapshot(snap)
    after = chain.take()
    assert disk_of(after, "vda").sync == "full"
    chain.prove_all()
    snap.delete()


def test_virtvaults_bitmaps_stay_while_a_backup_runs_and_the_users_may_change(
    boot: Boot, engine: Engine, points: TakePoints
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    give_new_content(guest, 2)
    guest.qemu_io("vda", "write -P 9 16M 16M")
    with Running(engine, guest) as running:
        mend = assert_refused(
            *(by_hand.remove, engine, guest, DomainBusy, running.task_id),
            name="virtvault.*",
            include_ours=True,
        )
        assert f"virtvault cancel {running.task_id}" in mend
        ask(by_hand.add, engine, guest, "mine")
        ask(by_hand.clear, engine, guest, "mine")
        ask(by_hand.remove, engine, guest, "mine")
        # Its worker stops: nobody holds the domain, and the run waits for the next worker.
        running.stopping.set()
        running.raised()
        assert_refused(
            *(by_hand.remove, engine, guest, DomainBusy, running.task_id),
            name="virtvault.*",
            include_ours=True,
        )
    with Running(engine, guest, task_id=running.task_id) as again:
        again.hurry()
        last = disk_of(again.result(), "vda")
    assert last.sync == "incremental"
    done = ask(by_hand.remove, engine, guest, "virtvault.*", include_ours=True)
    assert [b.name for b in done.bitmaps] == [last.bitmap, f"{last.bitmap}.witness"]


def test_a_users_bitmap_is_untouched_by_full_and_incremental(
    boot: Boot, engine: Engine, points: TakePoints
) -> None:
    guest = boot(VDA, VDB_RAW)
    ask(by_hand.add, engine, guest, "mine")
    chain = points(guest)
    for value, sync in ((1, "full"), (2, "incremental")):
        guest.qemu_io("vda", f"write -P {value} {value}M 64k")
        before = {t: in_qemu_now(guest, t, "mine") for t in guest.disks}
        assert before["vda"]["count"] == value * 65536  # type: ignore[index]
        assert disk_of(chain.take(), "vda").sync == sync
        assert {t: in_qemu_now(guest, t, "mine") for t in guest.disks} == before
    chain.prove_all()


def test_virtvaults_bitmap_left_on_a_backing_image_makes_no_wrong_incremental(
    boot: Boot, engine: Engine, points: TakePoints, workdir: Path
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    own = disk_of(chain.take(), "vda").bitmap
    overlay = workdir / "guest" / f"{guest.name}-overlay.qcow2"
    snapshot(guest, "vda", overlay)
    guest.qemu_io("vda", "write -P 77 20M 3M")
    ask(by_hand.remove, engine, guest, own, include_ours=True)
    left = listed(engine, guest)
    assert [info.name for info in left] == [own, f"{own}.witness"]
    assert {(info.active, info.image) for info in left} == {(False, str(guest.image("vda")))}
    assert_refused(by_hand.remove, engine, guest, UnknownBitmap, "backing image", name=own)

    # Committed, the overlay's writes must be in the point whatever the bitmap below says.
    guest.domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    until(lambda: pivoted(guest), "the pivot")
    guest.qemu_io("vda", "write -P 78 30M 1M")
    after = chain.take()
    assert_same(
        image_of(engine, after),
        "qcow2",
        flat_copy(guest, "vda", guest.image("vda"), workdir / "flat.qcow2"),
        "qcow2",
    )


# -- through the roles -----------------------------------------------------------------------------


def test_the_commands_work_through_the_roles_and_say_what_was_done(
    boot: Boot, workdir: Path, hypervisor: Hypervisor
) -> None:
    guest = boot(VDA, VDB_RAW)

    def run(stack: Stack, *arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, ["--config", str(stack.config), "bitmaps", *arguments])
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done.stdout if code == 0 else done.output

    with Stack(workdir, libvirt_uri=hypervisor.uri) as stack:
        said = run(stack, "add", guest.name, "mine", "--granularity", "128K").splitlines()
        assert said == [
            "vda: added mine, 128.0 KiB granularity, persistent (stored in the image at shutdown)",
            "vdb: added mine, 128.0 KiB granularity, not persistent (in QEMU's memory, gone when "
            "the domain is shut off)",
        ]
        stack.client().backup(guest.name).wait(60)
        own, *_ = [b for b in stack.client().bitmaps(guest.name) if b.owner == "virtvault"]
        table = run(stack, "list", guest.name)
        line = next(line for line in table.splitlines() if own.name in line)
        assert own.purpose in line
        assert json.loads(run(stack, "list", guest.name, "--json", "--disk", "vdb"))[0][
            "granularity"
        ] in (65536, 131072)
        assert "exists already on vda" in run(stack, "add", guest.name, "mine", code=2)
        for wrong in ("100", "256", "4G", "x"):
            run(stack, "add", guest.name, "new", "--granularity", wrong, code=2)
        for wrong in ("", "x" * 1024, "-x", "a\nb"):
            assert "name" in run(stack, "add", guest.name, "--", wrong, code=2)
        assert "virtvault's own" in run(stack, "clear", guest.name, own.name, code=2)
        assert "--yes" in run(stack, "remove", guest.name, own.name, code=2)
        removed = run(stack, "remove", guest.name, "virtvault.*", "--yes")
        assert f"vda: removed {own.name} ({own.purpose}): the next backup there is a full" in (
            removed.splitlines()
        )
        changes = json.loads(run(stack, "remove", guest.name, "mine", "--json"))
        assert (changes["action"], len(changes["bitmaps"])) == ("removed", 2)
        assert run(stack, "list", guest.name) == "No bitmaps.\n"
    assert bitmaps(guest) == {}
