"""Points equal what the guest's disks were at their instant.

Every test writes through the guest's own devices and compares each point, byte for byte, with a
copy of the disk made at the same instant. What others do to the disks between two points has a
module of its own, test_between_points.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MIB, with_settings
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
    node_of,
    qemu_img,
    snapshot,
    syncs,
)
from tests.lab import DiskSpec, Guest, assert_same
from virtvault.models import BackupRequest, BackupResult
from virtvault.settings import RepositorySettings
from workers.backup import backup
from workers.bitmap_names import PREFIX
from workers.engine import Engine, Ties

# -- a chain ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", [0, 3 * 512], ids=["whole", "odd"])
def test_full_and_three_incrementals_of_all_kinds_of_disks_equal_the_disks_at_their_instant(
    boot: Boot, points: TakePoints, engine: Engine, odd: int
) -> None:
    size = 64 * MIB + odd
    guest = boot(
        DiskSpec("vda", "qcow2", size),
        DiskSpec("vdb", "raw", size, iothread=True),
        DiskSpec("sda", "qcow2", size, bus="scsi"),
        DiskSpec("sdb", "raw", size, bus="sata"),
    )
    chain = points(guest)
    choice = random.Random(7)
    for number in range(4):
        for target in guest.disks:
            change(guest, target, size, choice, number)
        result = chain.take()
        assert set(syncs(result).values()) == {"incremental" if number else "full"}
        assert [disk.virtual_size for disk in result.disks] == [size] * 4
        assert [disk.persistent for disk in result.disks] == [True, False, True, False]
        assert result.isolated
        assert_one_bitmap_per_disk(guest, result)
        assert_nothing_remains(engine, guest)
    chain.prove_all()


def change(guest: Guest, target: str, size: int, choice: random.Random, number: int) -> None:
    """New data, overwrites, zeroes and discards over what earlier rounds wrote, the very end."""
    if number == 0:
        guest.qemu_io(target, "write -P 0xee 4M 16M")
    for _ in range(4):
        at = choice.randrange(4 * MIB, 20 * MIB, 512)
        guest.qemu_io(target, f"write -P {choice.randrange(1, 255)} {at} {512 * 77}")
    at = choice.randrange(4 * MIB, 19 * MIB, 512)
    guest.qemu_io(target, f"write -z {at} 512")
    guest.qemu_io(target, f"write -z {4 * MIB + number * MIB} 192k")
    guest.qemu_io(target, f"discard {9 * MIB + number * MIB} 256k")
    guest.qemu_io(target, f"write -P {number + 1} {size - 512} 512")
    if number == 2:
        guest.qemu_io(target, f"write -z {size - 512} 512")


def test_an_unchanged_disk_costs_an_incremental_next_to_nothing(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    result = chain.take()
    done = disk_of(result, "vda")
    # Two granules of 64 KiB, marked so that the bitmap can be trusted.
    assert (done.sync, done.transferred, done.witness) == ("incremental", 131072, 131072)
    chain.prove_all()


def test_a_full_that_is_asked_for_is_one_and_the_chain_goes_on_from_it(
    boot: Boot, points: TakePoints
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    give_new_content(guest, 2)
    full = chain.take(sync="full")
    give_new_content(guest, 3)
    after = chain.take(sync="incremental")
    assert (disk_of(full, "vda").sync, disk_of(full, "vda").reason) == ("full", "")
    assert disk_of(after, "vda").parent == full.point
    chain.prove_all()


def test_a_running_guest_is_backed_up_like_a_paused_one_and_runs_on(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, VDB_RAW)
    guest.resume()
    chain = points(guest)
    for value in (1, 2):
        give_new_content(guest, value)
        result = chain.back_up()
        assert guest.qmp("query-status")["running"]
        guest.suspend()
        for target, spec in guest.disks.items():
            reference = guest.reference(target, chain.directory / f"ref-{value}-{target}")
            assert_same(image_of(engine, result, target), "qcow2", reference, spec.format)
        guest.resume()
        assert 0 < result.paused_ms < 1000
    assert set(syncs(result).values()) == {"incremental"}
    assert_one_bitmap_per_disk(guest, result)
    assert_nothing_remains(engine, guest)


def test_writes_during_the_copy_are_in_the_next_point_and_not_in_this_one(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, VDB_RAW)
    chain = points(guest)
    for target in guest.disks:
        guest.qemu_io(target, "write -P 1 0 24M")
    references = {t: guest.reference(t, chain.directory / f"during-{t}") for t in guest.disks}
    with Running(engine, guest) as running:
        for target in guest.disks:
            # Copied already or not, data, zeroes and discards.
            guest.qemu_io(target, "write -P 2 0 128k")
            guest.qemu_io(target, "write -P 3 20M 3M")
            guest.qemu_io(target, "write -z 16M 1M")
            guest.qemu_io(target, "discard 18M 1M")
            guest.qemu_io(target, f"write -P 4 {64 * MIB - 512} 512")
        running.hurry()
        result = running.result()
    chain.taken.append((result, references))
    after = chain.take()
    assert set(syncs(after).values()) == {"incremental"}
    chain.prove_all()
    assert_one_bitmap_per_disk(guest, after)
    assert_nothing_remains(engine, guest)


def test_writes_during_an_incremental_are_in_the_next_point_and_not_in_this_one(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 16M")
    chain.take()
    guest.qemu_io("vda", "write -P 2 4M 8M")
    reference = guest.reference("vda", chain.directory / "during")
    with Running(engine, guest) as running:
        guest.qemu_io("vda", "write -P 3 3M 1M")
        guest.qemu_io("vda", "write -P 4 10M 4M")
        running.hurry()
        result = running.result()
    assert disk_of(result, "vda").sync == "incremental"
    chain.taken.append((result, {"vda": reference}))
    chain.take()
    chain.prove_all()


# -- why a full ------------------------------------------------------------------------------------


def test_nothing_builds_on_an_image_that_is_missing_or_cut(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    first = chain.take()
    give_new_content(guest, 2)
    chain.take()
    image = image_of(engine, first)
    hidden = image.rename(image.with_suffix(".hidden"))
    give_new_content(guest, 3)
    result = chain.take(sync="incremental")
    assert disk_of(result, "vda").sync == "full"
    assert f"needs {image}, which is not there" in disk_of(result, "vda").reason
    hidden.rename(image)

    own = image_of(engine, result)
    length = own.stat().st_size
    content = own.read_bytes()
    os.truncate(own, length - 512)
    give_new_content(guest, 4)
    result = chain.take()
    assert disk_of(result, "vda").sync == "full"
    assert f"{length - 512} bytes long and not {length}" in disk_of(result, "vda").reason
    own.write_bytes(content)
    chain.prove_all()


def test_where_the_newest_point_was_removed_the_reason_says_so(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    chain.take()
    newest = chain.take()
    shutil.rmtree(image_of(engine, newest).parent)
    chain.taken.pop()
    give_new_content(guest, 2)
    result = chain.take()
    assert disk_of(result, "vda").sync == "full"
    assert newest.point in disk_of(result, "vda").reason
    chain.prove_all()


def test_a_damaged_manifest_takes_its_point_out_of_the_chain(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    give_new_content(guest, 1)
    first = chain.take()
    manifest = image_of(engine, first).with_name("manifest.json")
    manifest.write_text(manifest.read_text()[:-100])
    give_new_content(guest, 2)
    result = chain.take()
    assert disk_of(result, "vda").sync == "full"
    chain.prove_all()


# -- others at the same disks ----------------------------------------------------------------------


def test_a_snapshot_during_the_copy_changes_neither_this_point_nor_the_next(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    guest.qemu_io("vda", "write -P 1 0 8M")
    chain.take()
    guest.qemu_io("vda", "write -P 2 0 6M")
    reference = guest.reference("vda", chain.directory / "during")
    overlay = guest.directory / f"{guest.name}-overlay"
    with Running(engine, guest) as running:
        guest.qemu_io("vda", "write -P 3 5M 1M")
        snapshot(guest, "vda", overlay)
        guest.qemu_io("vda", "write -P 4 4M 512k")
        running.hurry()
        result = running.result()
    chain.taken.append((result, {"vda": reference}))
    assert_nothing_remains(engine, guest)
    guest.qemu_io("vda", "write -P 5 7M 64k")
    flat = flat_copy(guest, "vda", overlay, chain.directory / "flat")
    after = chain.back_up()
    assert_same(image_of(engine, after), "qcow2", flat, "qcow2")
    chain.prove_all()


def test_bitmaps_of_others_are_left_as_they_are(boot: Boot, points: TakePoints) -> None:
    guest = boot(VDA)
    chain = points(guest)
    node = node_of(guest, "vda")
    guest.domain.checkpointCreateXML(
        "<domaincheckpoint><name>libvirts</name></domaincheckpoint>", 0
    )
    guest.qmp("block-dirty-bitmap-add", node=node, name="users", persistent=True)
    guest.qmp("block-dirty-bitmap-add", node=node, name="resting", disabled=True)
    # Another repository's, or another host's, of a point this one does not know.
    alien = f"{PREFIX}01234567.20200101T000000Z-01234567"
    guest.qmp("block-dirty-bitmap-add", node=node, name=alien)
    guest.qemu_io("vda", "write -P 1 0 1M")
    before = others(guest)
    assert len(before) == 4
    chain.take()
    chain.take()
    assert others(guest) == before
    guest.qemu_io("vda", "write -P 2 4M 64k")
    chain.take()
    counts = {name: bitmap["count"] for name, bitmap in others(guest).items()}
    assert counts == {
        name: bitmap["count"] + (0 if name.endswith("resting") else 65536)
        for name, bitmap in before.items()
    }
    chain.prove_all()


def others(guest: Guest) -> dict[str, dict[str, Any]]:
    known = ("libvirts", "users", "resting", "01234567.20200101T000000Z-01234567")
    return {name: b for name, b in bitmaps(guest).items() if name.endswith(known)}


# -- disks and repositories ------------------------------------------------------------------------


def test_a_disk_that_was_left_out_goes_on_from_its_own_parent(
    boot: Boot, points: TakePoints, engine: Engine
) -> None:
    guest = boot(VDA, DiskSpec("vdb", "qcow2", 64 * MIB))
    chain = points(guest)
    give_new_content(guest, 1)
    both = chain.take()
    give_new_content(guest, 2)
    only = chain.take(disks=("vda",))
    assert (list(syncs(only)), only.skipped) == (["vda"], {"vdb": "not asked for"})
    give_new_content(guest, 3)
    result = chain.take()
    assert syncs(result) == {"vda": "incremental", "vdb": "incremental"}
    parents = {disk.target: disk.parent for disk in result.disks}
    assert parents == {"vda": only.point, "vdb": both.point}
    assert_one_bitmap_per_disk(guest, result)
    assert_nothing_remains(engine, guest)
    chain.prove_all()


def test_two_repositories_have_chains_of_their_own(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    (workdir / "other").mkdir()
    repositories = {
        **engine.settings.repositories,
        "other": RepositorySettings("other", str(workdir / "other")),
    }
    both = with_settings(engine, repositories=repositories, default_repository="main")
    taken: list[tuple[BackupResult, Path]] = []
    for number, repository in enumerate(("main", "other", "main", "main", "other")):
        give_new_content(guest, number + 1)
        guest.qemu_io("vda", f"write -P {number + 1} {20 + number}M 64k")
        reference = guest.reference("vda", workdir / f"ref-{number}")
        request = BackupRequest(domain=guest.name, repository=repository)
        taken.append((backup(both, request, Ties(uuid.uuid4().hex)), reference))
    results = [result for result, _ in taken]
    parents = [disk_of(result, "vda").parent for result in results]
    assert parents == ["", "", results[0].point, results[2].point, results[1].point]
    for result, reference in taken:
        assert_same(image_of(both, result), "qcow2", reference, "qcow2")
    ours = {name.partition("/")[2] for name in bitmaps(guest)}
    newest = {disk_of(result, "vda").bitmap for result in results[3:5]}
    assert ours == newest | {f"{name}.witness" for name in newest}


def test_disks_that_cannot_be_backed_up_are_skipped_and_said_so(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    for name in ("cd.iso", "fixed.img"):
        (workdir / name).write_bytes(bytes(MIB))
        (workdir / name).chmod(0o644)
    guest = boot(
        VDA,
        extra_devices=f"""
        <disk type='file' device='cdrom'><driver name='qemu' type='raw'/>
          <source file='{workdir}/cd.iso'/><target dev='sdx' bus='sata'/><readonly/></disk>
        <disk type='file' device='cdrom'><target dev='sdy' bus='sata'/><readonly/></disk>
        <disk type='file' device='disk'><driver name='qemu' type='raw'/>
          <source file='{workdir}/fixed.img'/><target dev='vdz' bus='virtio'/><readonly/></disk>
        """,
    )
    chain = points(guest)
    result = chain.take()
    assert list(syncs(result)) == ["vda"]
    assert result.skipped == {
        "sdx": "cdrom drive",
        "sdy": "cdrom drive, empty",
        "vdz": "read-only",
    }
    assert_nothing_remains(engine, guest)
    chain.prove_all()


COPY_ON_READ = """
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' copy_on_read='on'/>
      <source file='{image}'/><target dev='vdc' bus='virtio'/>
      <iotune><total_iops_sec>10000</total_iops_sec></iotune>
    </disk>"""


def test_filters_that_libvirt_put_above_a_disk_are_still_there_after_its_backup(
    boot: Boot, points: TakePoints, workdir: Path
) -> None:
    (workdir / "more").mkdir(mode=0o711)
    image = workdir / "more" / "vdc.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    guest = boot(VDA, extra_devices=COPY_ON_READ.format(image=image))

    def roots() -> list[str]:
        blocks = guest.qmp("query-block")
        return sorted(b["inserted"]["node-name"] for b in blocks if "inserted" in b)

    before = roots()
    assert "libvirt-CoR-vdc" in before
    for sync in ("full", "incremental"):
        assert syncs(points(guest).back_up()) == {"vda": sync, "vdc": sync}
        assert roots() == before


def test_stock_tools_open_every_point_even_after_the_repository_was_moved(
    boot: Boot, points: TakePoints, engine: Engine, workdir: Path
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    for value in (1, 2):
        give_new_content(guest, value)
        chain.take()
    (first, _), (second, references) = chain.taken
    moved = (workdir / "repo").rename(workdir / "elsewhere") / second.uuid
    try:
        image = moved / second.point / "vda.qcow2"
        info = json.loads(qemu_img("info", "--output=json", image))
        assert info["backing-filename"] == f"../{first.point}/vda.qcow2"
        assert info["backing-filename-format"] == "qcow2"
        assert info["virtual-size"] == 64 * MIB
        qemu_img("check", "-q", image)
        assert_same(image, "qcow2", references["vda"], "qcow2")
        assert (moved / second.point / "domain.xml").read_text().startswith("<domain")
        full = json.loads(qemu_img("info", "--output=json", moved / first.point / "vda.qcow2"))
        assert "backing-filename" not in full
    finally:
        (workdir / "elsewhere").rename(workdir / "repo")


def test_compressed_points_equal_the_disk_too(
    boot: Boot, engine: Engine, points: TakePoints
) -> None:
    guest = boot(VDA)
    chain = points(guest)
    chain.engine = with_settings(engine, compression="zstd")
    guest.qemu_io("vda", "write -P 1 0 8M")
    full = chain.take()
    give_new_content(guest, 2)
    guest.qemu_io("vda", "write -z 4M 1M")
    assert disk_of(chain.take(), "vda").sync == "incremental"
    assert disk_of(full, "vda").stored < MIB
    chain.prove_all()
    assert_nothing_remains(engine, guest)


def test_the_same_task_delivered_again_gives_the_point_it_made(boot: Boot, engine: Engine) -> None:
    guest = boot(VDA)
    give_new_content(guest, 1)
    request = BackupRequest(domain=guest.name)
    task = uuid.uuid4().hex
    first = backup(engine, request, Ties(task))
    listing = committed(engine)
    again = backup(engine, request, Ties(task))
    assert replace(again, job_seconds=first.job_seconds) == first
    assert committed(engine) == listing
