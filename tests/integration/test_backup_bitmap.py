"""``backup --bitmap NAME``: a bitmap of the user's is copied from, and cleared after the commit."""

from __future__ import annotations

import uuid

import pytest

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    VDA,
    Boot,
    Running,
    TakePoints,
    assert_nothing_remains,
    assert_one_bitmap_per_disk,
    bitmaps,
    disk_of,
    give_new_content,
    node_of,
)
from tests.lab import DiskSpec, Guest
from virtvault.errors import Cancelled, ProtectedBitmap, UnknownBitmap, WorkFailed
from virtvault.models import BackupRequest, BackupResult, BitmapRequest
from workers.backup import backup
from workers.bitmaps import listing
from workers.engine import Engine, Ties

NAME = "mine"
VDB = DiskSpec("vdb", "qcow2", 64 * MIB)


def add(guest: Guest, name: str = NAME, **more: object) -> None:
    for target in guest.disks:
        guest.qmp("block-dirty-bitmap-add", node=node_of(guest, target), name=name, **more)


def dirty(guest: Guest, target: str = "vda") -> int:
    """The bytes the user's bitmap marks."""
    return int(bitmaps(guest)[f"{node_of(guest, target)}/{NAME}"]["count"])


def take(engine: Engine, guest: Guest, sync: str, **more: str) -> BackupResult:
    request = BackupRequest(domain=guest.name, sync=sync, **{"bitmap": NAME, **more})
    result = backup(engine, request, Ties(uuid.uuid4().hex))
    assert isinstance(result, BackupResult)
    return result


@pytest.mark.parametrize("state", ["paused", "running", "shut off"])
def test_a_full_clears_it_and_an_incremental_copies_what_it_marks_and_clears_it(
    boot: Boot, points: TakePoints, engine: Engine, state: str
) -> None:
    guest = boot(VDA)
    add(guest, persistent=True)
    chain = points(guest)
    give_new_content(guest, 1)
    assert dirty(guest) > 0
    for number, sync in enumerate(("full", "incremental", "incremental")):
        guest.qemu_io("vda", f"write -P {number} 20M 1M")
        if state == "shut off":
            guest.shutdown_clean()
        elif state == "running":
            guest.resume()
            guest.suspend()
        reference = guest.reference("vda", chain.directory / f"reference-{number}")
        result = take(engine, guest, sync)
        chain.taken.append((result, {"vda": reference}))
        assert disk_of(result, "vda").sync == sync
        if state == "shut off":
            guest.start()
        assert dirty(guest) == 0
        if state != "shut off":  # there the next backup takes the older out
            assert_one_bitmap_per_disk(guest, result)
        assert_nothing_remains(engine, guest)
    chain.prove_all()


def test_what_it_marks_is_copied_though_the_newest_point_has_it(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    chain.take()
    add(guest)
    guest.qemu_io("vda", "write -P 7 20M 4M")
    chain.take()
    nothing_new = chain.take()
    assert disk_of(nothing_new, "vda").transferred < MIB
    result = take(engine, guest, "incremental")
    assert 4 * MIB <= disk_of(result, "vda").transferred < 5 * MIB
    assert disk_of(result, "vda").parent == nothing_new.point
    chain.prove_all()


def test_what_is_written_during_the_copy_stays_marked(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    add(guest)
    guest.qemu_io("vda", "write -P 1 0 14M")
    with Running(engine, guest, sync="full", bitmap=NAME) as running:
        guest.qemu_io("vda", "write -P 2 30M 2M")
        running.hurry()
        running.result()
    assert dirty(guest) == 2 * MIB


def test_a_cancelled_backup_leaves_every_mark(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA, VDB)
    add(guest)
    guest.qemu_io("vda", "write -P 1 0 14M")
    with Running(engine, guest, sync="full", bitmap=NAME) as running:
        guest.qemu_io("vda", "write -P 2 30M 2M")
        engine.journal.wishes(running.task_id).touch()
        assert isinstance(running.raised(), Cancelled)
    assert dirty(guest) == 16 * MIB
    assert_nothing_remains(engine, guest)
    found = listing(engine, BitmapRequest(domain=guest.name))
    assert [info.name for info in found] == [NAME, NAME]


@pytest.mark.parametrize("name", ["ours", "libvirt's"])
def test_ours_and_libvirts_are_refused(
    boot: Boot, points: TakePoints, engine: Engine, name: str
) -> None:
    guest = boot(VDA)
    if name == "ours":
        name = disk_of(points(guest).back_up(), "vda").bitmap
    else:
        name = "monday"
        guest.domain.checkpointCreateXML(
            f"<domaincheckpoint><name>{name}</name></domaincheckpoint>"
        )
    before = bitmaps(guest)
    with pytest.raises(ProtectedBitmap, match="--bitmap takes one of yours"):
        take(engine, guest, "incremental", bitmap=name)
    assert bitmaps(guest) == before
    assert_nothing_remains(engine, guest)


def test_one_that_a_disk_does_not_have_is_named_before_anything_is_touched(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(VDA, VDB)
    guest.qmp("block-dirty-bitmap-add", node=node_of(guest, "vda"), name=NAME)
    with pytest.raises(UnknownBitmap, match=r"Disk vdb of domain .* has no bitmap 'mine'"):
        take(engine, guest, "full")
    assert_nothing_remains(engine, guest)


def test_one_that_was_disabled_is_not_copied_from(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    add(guest)
    guest.qmp("block-dirty-bitmap-disable", node=node_of(guest, "vda"), name=NAME)
    with pytest.raises(WorkFailed, match="was disabled by somebody and has missed writes"):
        take(engine, guest, "incremental")
    assert_nothing_remains(engine, guest)
