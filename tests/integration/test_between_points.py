"""What happens to disks between two points, and what the next ``auto`` point then is.

Each row of :data:`MATRIX` is an event: a function of a :class:`Scene` in which somebody does
something to the guest's disks. The one test takes point 1, writes, lets the event happen, writes,
and takes point 2, which is what the row says: an incremental, or a full with its reason. Every disk
of every point is, byte for byte, what the guest saw at its instant. What was written before, amid
and after the event never covers one another, so nothing that is missed stays hidden.

Where the event has left the disk on other images a third point is taken, an incremental on the
second. Elsewhere it would tell nothing: point 2 has left the disk as point 1 did, with one bitmap
and its witness.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from tests.integration.between_points import SIZE, Scene
from tests.integration.conftest import MIB
from tests.integration.scenes import (
    Boot,
    assert_nothing_remains,
    disk_of,
    node_of,
    qemu_img,
    until,
)
from tests.lab import DiskSpec
from tests.lab.domain import own
from virtvault.models import BackupResult
from workers.engine import Engine

VDA = DiskSpec("vda", "qcow2", SIZE)
VDA_RAW = DiskSpec("vda", "raw", SIZE)
VDB = DiskSpec("vdb", "qcow2", SIZE)
VDB_RAW = DiskSpec("vdb", "raw", SIZE)
SDA = DiskSpec("sda", "qcow2", SIZE, bus="scsi")


@dataclass(frozen=True)
class Incremental:
    """An incremental on one of the points taken so far: the last, unless a number says another."""

    on: int = -1


@dataclass(frozen=True)
class Full:
    """A full whose reason has these words in it."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """Not in the point, for this reason."""

    reason: str


@dataclass(frozen=True)
class Either:
    """Incremental or full: only that it is right is asked."""


Outcome = Incremental | Full | Skipped | Either


# -- power -----------------------------------------------------------------------------------------


def nothing(scene: Scene) -> None:
    """Only the guest's own writes."""


def clean_power_cycle(scene: Scene) -> None:
    scene.off()
    scene.on()


def power_cut(scene: Scene) -> None:
    scene.guest.power_cycle()


def managed_save_and_start(scene: Scene) -> None:
    scene.guest.domain.managedSave(libvirt.VIR_DOMAIN_SAVE_PAUSED)
    scene.on()


def qemu_killed_before_the_bitmap_was_ever_stored(scene: Scene) -> None:
    scene.guest.kill_qemu()
    scene.on()


def qemu_killed_after_the_bitmap_was_stored(scene: Scene) -> None:
    scene.off()
    scene.on()
    scene.write()
    scene.guest.kill_qemu()
    scene.on()


# -- external snapshots ----------------------------------------------------------------------------


def snapshot_by_libvirt(scene: Scene) -> None:
    scene.snapshot("overlay")


def two_snapshots_by_libvirt(scene: Scene) -> None:
    scene.snapshot("lower")
    scene.write()
    scene.snapshot("upper")


def snapshot_then_power_cycle(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    clean_power_cycle(scene)


def snapshot_by_qmp_then_power_cycle(scene: Scene) -> None:
    """libvirt knows nothing of the overlay: the disk is what it was before the snapshot."""
    scene.snapshot_by_qmp("overlay")
    scene.write()
    clean_power_cycle(scene)
    assert scene.chain() == [str(scene.image)]


def snapshot_while_off(scene: Scene) -> None:
    scene.off()
    scene.use(scene.new_image("overlay", "-b", scene.image, "-F", "qcow2"))
    scene.on()
    assert scene.chain() == [str(scene.path("overlay")), str(scene.image)]


def snapshot_thrown_away(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.off()
    scene.use(scene.image)
    scene.on()


def snapshot_thrown_away_after_a_point_of_it(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.point()
    scene.write()
    scene.off()
    scene.use(scene.image)
    scene.on()


# -- snapshots that end ----------------------------------------------------------------------------


def commit_and_pivot(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.commit()


def commit_by_deleting_the_snapshot(scene: Scene) -> None:
    """libvirt 9.0 and newer delete an external snapshot by committing it."""
    scene.snapshot("overlay", metadata=True)
    scene.write()
    scene.guest.domain.snapshotLookupByName("overlay").delete()
    assert scene.chain() == [str(scene.image)]


def commit_after_a_point_of_the_overlay(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.point()
    scene.write()
    scene.commit()


def commit_given_up_before_the_pivot(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.begin_commit()
    scene.write()
    scene.guest.domain.blockJobAbort("vda", 0)
    scene.await_end()
    assert len(scene.chain()) == 2


def commit_during_which_qemu_was_killed(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.begin_commit()
    scene.write()
    scene.guest.kill_qemu()
    scene.on()


def commit_of_an_inner_image(scene: Scene) -> None:
    lower = scene.snapshot("lower")
    scene.write()
    scene.snapshot("upper")
    scene.write()
    scene.commit_inner(lower)


def commit_of_an_inner_image_by_qmp(scene: Scene) -> None:
    lower = scene.snapshot("lower")
    scene.write()
    upper = scene.snapshot("upper")
    scene.write()
    scene.job_by_qmp(
        "block-commit",
        **{"device": scene.node(upper), "top-node": scene.node(lower)},
    )
    assert scene.chain() == [str(upper), str(scene.image)]


def commit_of_an_overlay_without_our_bitmap(scene: Scene) -> None:
    snapshot_while_off(scene)
    scene.write()
    scene.commit()


def commit_by_qmp_of_an_overlay_without_our_bitmap(scene: Scene) -> None:
    overlay = scene.snapshot_by_qmp("overlay")
    scene.write()
    scene.job_by_qmp("block-commit", device=overlay)
    assert scene.chain() == [str(scene.image)]


def commit_while_off(scene: Scene) -> None:
    snapshot_while_off(scene)
    scene.write()
    scene.off()
    qemu_img("commit", "-q", scene.path("overlay"))
    scene.use(scene.image)
    scene.on()


def another_snapshot_under_the_name_of_a_committed_one(scene: Scene) -> None:
    commit_after_a_point_of_the_overlay(scene)
    scene.write()
    scene.path("overlay").unlink()
    scene.snapshot("overlay")


def pull_of_all_images(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.pull()


def pull_of_some_images(scene: Scene) -> None:
    scene.snapshot("lower")
    scene.write()
    scene.snapshot("upper")
    scene.write()
    scene.pull(scene.image)


def pull_of_some_images_by_qmp(scene: Scene) -> None:
    """QEMU writes what it pulls past the bitmap, and the pulled image's bitmap is gone."""
    scene.snapshot("lower")
    scene.write()
    upper = scene.snapshot("upper")
    scene.job_by_qmp(
        "block-stream",
        **{"device": scene.node(upper), "base-node": scene.node(scene.image)},
    )
    assert scene.chain() == [str(upper), str(scene.image)]


def pull_of_all_images_by_qmp_and_the_old_name_given_back(scene: Scene) -> None:
    overlay = scene.snapshot("overlay")
    scene.job_by_qmp("block-stream", device=scene.node(overlay))
    scene.off()
    shutil.move(overlay, scene.image)
    scene.use(scene.image)
    scene.on()


def rebase_while_off(scene: Scene) -> None:
    scene.snapshot("lower")
    scene.write()
    upper = scene.snapshot("upper")
    scene.off()
    qemu_img("rebase", "-f", "qcow2", "-b", scene.image, "-F", "qcow2", upper)
    scene.use(upper)
    scene.on()
    assert scene.chain() == [str(upper), str(scene.image)]


# -- other images ----------------------------------------------------------------------------------


def copy_to_another_image(scene: Scene) -> None:
    scene.copy(scene.path("copy"))


def copy_to_another_image_by_qmp(scene: Scene) -> None:
    copy = scene.new_image("copy")
    scene.guest.qmp(
        "blockdev-add",
        **{"driver": "qcow2", "node-name": "copy"},
        file={"driver": "file", "filename": str(copy)},
    )
    scene.job_by_qmp(
        "blockdev-mirror", device=node_of(scene.guest, "vda"), target="copy", sync="full"
    )
    assert scene.chain() == [str(copy)]


def copy_of_the_overlay_alone(scene: Scene) -> None:
    scene.snapshot("overlay")
    scene.write()
    scene.copy(scene.path("copy"), libvirt.VIR_DOMAIN_BLOCK_COPY_SHALLOW)


def copy_there_and_back_into_the_old_image(scene: Scene) -> None:
    scene.copy(scene.path("copy"))
    scene.write()
    scene.point()
    scene.write()
    scene.copy(scene.image, libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT)


def rolled_back_to_a_copy_taken_while_off(scene: Scene) -> None:
    """The image comes back as it was after point 1, and with it its bitmap of then."""
    copy = scene.path("old")
    scene.off()
    shutil.copyfile(scene.image, copy)
    scene.on()
    scene.write()
    scene.point()
    scene.write()
    scene.off()
    shutil.copyfile(copy, scene.image)
    scene.on()


def rolled_back_to_a_copy_taken_while_running(scene: Scene) -> None:
    clean_power_cycle(scene)
    copy = scene.path("old")
    scene.guest.qemu_io("vda", "flush")
    shutil.copyfile(scene.image, copy)
    scene.write()
    scene.off()
    shutil.copyfile(copy, scene.image)
    scene.on()


def edited_while_off(scene: Scene) -> None:
    scene.off()
    command = ["qemu-io", "-f", "qcow2", "-c", "write -P 77 12M 1M", str(scene.image)]
    subprocess.run(command, check=True, capture_output=True)
    own(scene.image)
    scene.on()


def edited_while_off_by_software_that_knows_no_bitmaps(scene: Scene) -> None:
    """Such software clears the autoclear bits, by qcow2's specification at byte 88."""
    scene.off()
    with scene.image.open("r+b") as image:
        image.seek(88)
        image.write(bytes(8))
    command = ["qemu-io", "-f", "qcow2", "-c", "write -P 77 12M 1M", str(scene.image)]
    subprocess.run(command, check=True, capture_output=True)
    own(scene.image)
    scene.on()


def converted_while_off(scene: Scene, *options: str) -> None:
    fresh = scene.path("fresh")
    scene.off()
    qemu_img("convert", *options, "-f", "qcow2", "-O", "qcow2", scene.image, fresh)
    scene.use(fresh.replace(scene.image))
    scene.on()


def converted_while_off_with_its_bitmaps(scene: Scene) -> None:
    converted_while_off(scene, "--bitmaps")


def downgraded_to_compat_0_10(scene: Scene) -> None:
    """QEMU does that, and the bitmaps are gone; new ones cannot be stored in it any more."""
    scene.off()
    qemu_img("amend", "-f", "qcow2", "-o", "compat=0.10", scene.image)
    scene.on()


def disks_swapped_in_the_domain(scene: Scene) -> None:
    scene.off()
    scene.use(scene.guest.image("vdb"), "vda")
    scene.use(scene.guest.image("vda"), "vdb")
    scene.on()


def files_of_two_disks_swapped(scene: Scene) -> None:
    """As /dev/sdb and /dev/sdc may come up the other way round after a reboot."""
    scene.off()
    one, other, aside = scene.image, scene.guest.image("vdb"), scene.path("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    scene.on()


# -- internal snapshots ----------------------------------------------------------------------------


def internal_snapshot_deleted(scene: Scene) -> None:
    one = scene.internal_snapshot()
    scene.write()
    one.delete()


def loadvm_refused(scene: Scene) -> None:
    scene.hmp("savevm one")
    scene.write()
    with pytest.raises(RuntimeError, match="Device has active dirty bitmaps"):
        scene.hmp("loadvm one")


def loadvm_after_our_bitmaps_were_removed(scene: Scene) -> None:
    scene.hmp("savevm one")
    scene.write()
    scene.on_bitmap("remove", scene.bitmap, scene.witness)
    scene.hmp("loadvm one")


def libvirts_revert_refused(scene: Scene) -> None:
    """libvirt ends QEMU before it is refused: it leaves the domain shut off."""
    one = scene.internal_snapshot()
    scene.write()
    with pytest.raises(libvirt.libvirtError, match="Device has active dirty bitmaps"):
        scene.guest.domain.revertToSnapshot(one)
    assert not scene.guest.is_active()
    scene.on()


def libvirts_revert_after_our_bitmaps_were_removed(scene: Scene) -> None:
    one = scene.internal_snapshot()
    scene.write()
    scene.on_bitmap("remove", scene.bitmap, scene.witness)
    scene.guest.domain.revertToSnapshot(one)


# -- sizes -----------------------------------------------------------------------------------------


def grown(scene: Scene) -> None:
    resized(scene, 20 * MIB)
    scene.guest.qemu_io("vda", f"write -P 9 {20 * MIB - 512} 512")


def shrunk(scene: Scene) -> None:
    resized(scene, 12 * MIB)


def resized(scene: Scene, size: int) -> None:
    scene.guest.domain.blockResize("vda", size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def grown_and_shrunk_again(scene: Scene) -> None:
    grown(scene)
    resized(scene, SIZE)


def shrunk_and_grown_again(scene: Scene) -> None:
    """What was in the part that was cut off is zero now, and no bitmap says so."""
    shrunk(scene)
    resized(scene, SIZE)


def grown_while_off(scene: Scene) -> None:
    scene.off()
    qemu_img("resize", "-q", scene.image, str(20 * MIB))
    scene.on()


def shrunk_and_grown_again_while_off(scene: Scene) -> None:
    scene.off()
    qemu_img("resize", "-q", "--shrink", scene.image, str(12 * MIB))
    qemu_img("resize", "-q", scene.image, str(SIZE))
    scene.on()


# -- disks that come and go ------------------------------------------------------------------------


def hotplug_of_a_new_disk(scene: Scene) -> None:
    scene.plug(scene.new_image("new"), "sdb", unit=1)


def unplug_and_replug(scene: Scene) -> None:
    scene.plug(scene.unplug("sda"), "sda")


def unplugged_through_a_whole_point(scene: Scene) -> None:
    image = scene.unplug("sda")
    scene.point()
    scene.write()
    scene.plug(image, "sda")


def replug_of_another_image_in_the_same_file(scene: Scene) -> None:
    image = scene.unplug("sda")
    image.unlink()
    scene.plug(scene.new_image("other").rename(image), "sda")


def replug_of_a_clone_with_the_same_bitmap(scene: Scene) -> None:
    clone = scene.path("clone")
    shutil.copyfile(scene.unplug("sda"), clone)
    scene.plug(clone, "sda")


def replug_under_another_target(scene: Scene) -> None:
    scene.plug(scene.unplug("sda"), "sdc")


def media_change_of_a_cdrom(scene: Scene) -> None:
    for name in ("one.iso", "two.iso"):
        scene.path(name).write_bytes(bytes(MIB))
        own(scene.path(name))
        scene.guest.domain.updateDeviceFlags(
            "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>"
            f"<source file='{scene.path(name)}'/><target dev='sdx' bus='sata'/><readonly/></disk>",
            0,
        )


# -- bitmaps ---------------------------------------------------------------------------------------


def backup_and_checkpoint_by_libvirt(scene: Scene) -> None:
    scene.guest.domain.backupBegin(
        f"<domainbackup><disks><disk name='vda' type='file'><driver type='qcow2'/>"
        f"<target file='{scene.path('libvirts-backup')}'/></disk></disks></domainbackup>",
        "<domaincheckpoint><name>libvirts</name></domaincheckpoint>",
    )
    until(lambda: scene.guest.domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, "its backup")


def our_bitmap_removed(scene: Scene) -> None:
    scene.on_bitmap("remove")


def our_bitmap_disabled(scene: Scene) -> None:
    scene.on_bitmap("disable")


def our_bitmap_disabled_and_enabled_again(scene: Scene) -> None:
    scene.on_bitmap("disable")
    scene.write()
    scene.on_bitmap("enable")


def our_bitmap_cleared(scene: Scene) -> None:
    scene.on_bitmap("clear")


def our_bitmap_cleared_while_off(scene: Scene) -> None:
    scene.off()
    qemu_img("bitmap", "--clear", scene.image, scene.bitmap)
    scene.on()


def our_bitmap_removed_and_added_again(scene: Scene) -> None:
    scene.on_bitmap("remove")
    scene.on_bitmap("add", persistent=True)


def our_witness_removed(scene: Scene) -> None:
    scene.on_bitmap("remove", scene.witness)


def our_bitmap_and_its_witness_cleared(scene: Scene) -> None:
    scene.on_bitmap("clear", scene.bitmap, scene.witness)


def our_bitmap_and_its_witness_removed(scene: Scene) -> None:
    scene.on_bitmap("remove", scene.bitmap, scene.witness)


# -- the specification -----------------------------------------------------------------------------

EMPTY_CDROM = "<disk type='file' device='cdrom'><target dev='sdx' bus='sata'/><readonly/></disk>"

INCREMENTAL = Incremental()
RIGHT = Either()
GONE = Full("no bitmap since the last point: QEMU was killed, or somebody removed it")
GONE_WITH_QEMU = Full("on raw disks bitmaps live in QEMU's memory and end with it")
INCONSISTENT = Full("is inconsistent (QEMU ended without storing it)")
NOT_ON_OVERLAY = Full("overlay has no bitmap since the point")
OTHER_IMAGE = Full("no image has the witness of the parent's bitmap any more")
CLEARED = Full("the parent's bitmap was cleared, or removed and made anew, by somebody")
WITNESS_CHANGED = Full("the witness of the parent's bitmap is not what it was")
NEW_DISK = Full("first point of this disk in this repository")


def row(
    event: Callable[[Scene], None],
    /,
    *disks: DiskSpec,
    extra_devices: str = "",
    limit: str = "",
    **outcomes: Outcome,
) -> object:
    """An event, the guest's disks (one of qcow2 where none is named), what each is in point 2.

    ``limit`` says of an event that cannot be told why the point is not the disk's content.
    """
    wrong = pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"limit: {limit}")
    return pytest.param(
        event,
        disks or (VDA,),
        extra_devices,
        outcomes,
        id=event.__name__ + ("_on_a_raw_disk" if VDA_RAW in disks else ""),
        marks=[wrong] if limit else [],
    )


MATRIX = [
    row(nothing, VDA, VDB_RAW, vda=INCREMENTAL, vdb=INCREMENTAL),
    # power
    row(clean_power_cycle, VDA, VDB_RAW, vda=INCREMENTAL, vdb=GONE_WITH_QEMU),
    row(power_cut, vda=INCREMENTAL),
    row(managed_save_and_start, vda=INCREMENTAL),
    row(qemu_killed_before_the_bitmap_was_ever_stored, vda=GONE),
    row(qemu_killed_after_the_bitmap_was_stored, vda=INCONSISTENT),
    # external snapshots
    row(snapshot_by_libvirt, vda=INCREMENTAL),
    row(two_snapshots_by_libvirt, vda=INCREMENTAL),
    row(snapshot_by_libvirt, VDA_RAW, vda=NOT_ON_OVERLAY),
    row(snapshot_then_power_cycle, vda=INCREMENTAL),
    row(snapshot_by_qmp_then_power_cycle, vda=INCREMENTAL),
    row(snapshot_while_off, vda=NOT_ON_OVERLAY),
    row(snapshot_thrown_away, vda=INCREMENTAL),
    row(snapshot_thrown_away_after_a_point_of_it, vda=Incremental(on=0)),
    # commits
    row(commit_and_pivot, vda=INCREMENTAL),
    row(commit_and_pivot, VDA_RAW, vda=INCREMENTAL),
    row(commit_by_deleting_the_snapshot, vda=INCREMENTAL),
    row(commit_after_a_point_of_the_overlay, vda=Incremental(on=0)),
    row(commit_given_up_before_the_pivot, vda=INCREMENTAL),
    row(commit_during_which_qemu_was_killed, vda=NOT_ON_OVERLAY),
    row(commit_of_an_inner_image, vda=INCREMENTAL),
    row(commit_of_an_inner_image_by_qmp, vda=INCREMENTAL),
    row(commit_of_an_overlay_without_our_bitmap, vda=INCREMENTAL),
    row(commit_by_qmp_of_an_overlay_without_our_bitmap, vda=INCREMENTAL),
    row(commit_while_off, vda=INCREMENTAL),
    row(another_snapshot_under_the_name_of_a_committed_one, vda=Incremental(on=0)),
    # pulls
    row(pull_of_all_images, vda=OTHER_IMAGE),
    row(pull_of_some_images, vda=INCREMENTAL),
    row(
        pull_of_some_images_by_qmp,
        vda=Full("has more in it than was written to it since the point"),
    ),
    row(pull_of_all_images_by_qmp_and_the_old_name_given_back, vda=OTHER_IMAGE),
    row(rebase_while_off, vda=INCREMENTAL),
    # other images
    row(copy_to_another_image, vda=OTHER_IMAGE),
    row(copy_to_another_image_by_qmp, vda=GONE),
    row(copy_of_the_overlay_alone, vda=INCREMENTAL),
    row(copy_there_and_back_into_the_old_image, vda=Incremental(on=0)),
    row(rolled_back_to_a_copy_taken_while_off, vda=Incremental(on=0)),
    row(rolled_back_to_a_copy_taken_while_running, vda=INCONSISTENT),
    row(edited_while_off, vda=INCREMENTAL),
    row(edited_while_off_by_software_that_knows_no_bitmaps, vda=GONE),
    row(converted_while_off, vda=GONE),
    row(converted_while_off_with_its_bitmaps, vda=INCREMENTAL),
    row(downgraded_to_compat_0_10, vda=Full("on qcow2 disks bitmaps live in QEMU's memory")),
    row(disks_swapped_in_the_domain, VDA, VDB, vda=GONE, vdb=GONE),
    row(files_of_two_disks_swapped, VDA, VDB, vda=GONE, vdb=GONE),
    # internal snapshots
    row(internal_snapshot_deleted, vda=INCREMENTAL),
    row(loadvm_refused, vda=INCREMENTAL),
    row(loadvm_after_our_bitmaps_were_removed, vda=GONE),
    row(libvirts_revert_refused, vda=INCONSISTENT),
    row(libvirts_revert_after_our_bitmaps_were_removed, vda=GONE),
    # sizes
    row(grown, vda=Full(f"resized from {SIZE} to {20 * MIB} bytes")),
    row(grown_while_off, vda=Full(f"resized from {SIZE} to {20 * MIB} bytes")),
    row(shrunk, vda=Full(f"resized from {SIZE} to {12 * MIB} bytes")),
    row(grown_and_shrunk_again, vda=INCREMENTAL),
    row(shrunk_and_grown_again, vda=WITNESS_CHANGED),
    row(shrunk_and_grown_again_while_off, vda=WITNESS_CHANGED),
    # disks that come and go
    row(hotplug_of_a_new_disk, VDA, SDA, vda=INCREMENTAL, sda=INCREMENTAL, sdb=NEW_DISK),
    row(unplug_and_replug, VDA, SDA, vda=INCREMENTAL, sda=INCREMENTAL),
    row(unplugged_through_a_whole_point, VDA, SDA, vda=INCREMENTAL, sda=Incremental(on=0)),
    row(replug_of_another_image_in_the_same_file, VDA, SDA, vda=INCREMENTAL, sda=GONE),
    row(replug_of_a_clone_with_the_same_bitmap, VDA, SDA, vda=INCREMENTAL, sda=INCREMENTAL),
    row(replug_under_another_target, VDA, SDA, vda=INCREMENTAL, sdc=NEW_DISK),
    row(
        media_change_of_a_cdrom,
        extra_devices=EMPTY_CDROM,
        vda=INCREMENTAL,
        sdx=Skipped("cdrom drive"),
    ),
    # bitmaps
    row(backup_and_checkpoint_by_libvirt, vda=INCREMENTAL),
    row(our_bitmap_removed, vda=GONE),
    row(our_bitmap_disabled, vda=Full("was disabled by somebody and has missed writes")),
    row(
        our_bitmap_disabled_and_enabled_again,
        vda=RIGHT,
        limit="nothing that QEMU shows of a bitmap tells that it was disabled for a while",
    ),
    row(our_bitmap_cleared, vda=CLEARED),
    row(our_bitmap_cleared_while_off, vda=CLEARED),
    row(our_bitmap_removed_and_added_again, vda=CLEARED),
    row(our_witness_removed, vda=OTHER_IMAGE),
    row(our_bitmap_and_its_witness_cleared, vda=WITNESS_CHANGED),
    row(our_bitmap_and_its_witness_removed, vda=GONE),
]


@pytest.mark.parametrize(("event", "disks", "extra_devices", "outcomes"), MATRIX)
def test_after_it_the_next_point_is_right(
    boot: Boot,
    engine: Engine,
    workdir: Path,
    event: Callable[[Scene], None],
    disks: tuple[DiskSpec, ...],
    extra_devices: str,
    outcomes: dict[str, Outcome],
) -> None:
    guest = boot(*disks, extra_devices=extra_devices)
    scene = Scene(engine, guest, workdir)
    scene.fill()
    scene.point()
    images = scene.chain()
    scene.write()
    event(scene)
    before = [point.point for point in scene.points]
    scene.write()
    second = scene.point()
    if scene.chain() != images:
        scene.write()
        third = scene.point()
        assert {disk.parent for disk in third.disks} == {second.point}
    scene.prove_all()
    assert {disk.target for disk in second.disks} | set(second.skipped) == set(outcomes)
    for target, outcome in outcomes.items():
        assert_outcome(outcome, second, target, before)
    scene.assert_bitmaps_of_the_last_point()
    assert_nothing_remains(engine, guest)


def assert_outcome(outcome: Outcome, point: BackupResult, target: str, before: list[str]) -> None:
    match outcome:
        case Incremental(on):
            disk = disk_of(point, target)
            assert (disk.sync, disk.parent) == ("incremental", before[on]), disk.reason
        case Full(reason):
            disk = disk_of(point, target)
            assert (disk.sync, disk.parent) == ("full", "")
            assert reason in disk.reason
        case Skipped(reason):
            assert point.skipped[target] == reason
        case Either():
            pass
