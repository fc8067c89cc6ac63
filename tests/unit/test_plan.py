"""Every reason the planner has, as a table."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from virtvault.models import PointDisk
from workers.bitmap_names import OurBitmap, parse
from workers.disks import Bitmap, Disk, Layer
from workers.plan import DiskPlan, Evidence, FullWanted, ParentDisk, decide

REPOSITORY = "0a1b2c3d"
FIRST = "20260101T000000Z-11111111"
SECOND = "20260102T000000Z-22222222"
THIRD = "20260103T000000Z-33333333"
SIZE = 64 * 2**20
BASE = "/images/base.qcow2"
OVERLAY = "/images/overlay.qcow2"


def bitmap_name(repository: str, point: str) -> str:
    return OurBitmap(repository, point, "vda").name


def bitmap(point: str, repository: str = REPOSITORY) -> Bitmap:
    return Bitmap(bitmap_name(repository, point), True, False, True, False, 65536)


def layer(filename: str, *bitmaps: Bitmap, node: str = "") -> Layer:
    node = node or f"node-of-{filename}"
    return Layer(node, filename, "qcow2", {b.name: b for b in bitmaps})


def disk(*layers: Layer, format_: str = "qcow2") -> Disk:
    top = layers[0]
    return Disk("vda", "virtio", "disk", "/qom", top.filename, format_, SIZE, layers)


def parent(point: str, *, source: str = BASE, size: int = SIZE, trouble: str = "") -> ParentDisk:
    stored = PointDisk(
        target="vda",
        file="vda.qcow2",
        sync="full",
        parent="",
        reason="",
        virtual_size=size,
        transferred=size,
        stored=size,
        length=size,
        source=source,
        source_format="qcow2",
        bitmap=bitmap_name(REPOSITORY, point),
        persistent=True,
    )
    return ParentDisk(stored, trouble)


ONE = {FIRST: parent(FIRST)}
TWO = {FIRST: parent(FIRST), SECOND: parent(SECOND)}
WITH_FIRST = disk(layer(BASE, bitmap(FIRST)))


@pytest.mark.parametrize("asked", ["auto", "incremental"])
def test_an_incremental_follows_where_nothing_speaks_against_it(asked: str) -> None:
    assert decide(WITH_FIRST, asked, REPOSITORY, ONE) == DiskPlan(
        "incremental", FIRST, "", ((f"node-of-{BASE}", bitmap_name(REPOSITORY, FIRST)),)
    )


def test_a_full_that_was_asked_for_needs_no_reason() -> None:
    assert decide(WITH_FIRST, "full", REPOSITORY, ONE) == DiskPlan("full")


@pytest.mark.parametrize(
    ("given", "parents", "reason"),
    [
        (
            replace(WITH_FIRST, shared=True),
            ONE,
            "other domains write to this shared disk too, which no bitmap here sees",
        ),
        (WITH_FIRST, {}, "first point of this disk in this repository"),
        (
            disk(layer(BASE)),
            ONE,
            "no bitmap since the last point: QEMU was killed, or somebody removed it",
        ),
        (
            disk(layer(BASE), format_="raw"),
            ONE,
            "no bitmap since the last point: on raw disks bitmaps live in QEMU's memory and end "
            "with it",
        ),
        (
            disk(layer(BASE, bitmap(FIRST, repository="99999999"))),
            ONE,
            "no bitmap since the last point: QEMU was killed, or somebody removed it",
        ),
        (
            disk(layer(BASE, bitmap(SECOND), bitmap(THIRD))),
            ONE,
            f"the bitmap counts from point {THIRD}, which is not there",
        ),
        (
            WITH_FIRST,
            {FIRST: parent(FIRST, trouble="needs vda.qcow2, which is not there")},
            f"point {FIRST} needs vda.qcow2, which is not there",
        ),
        (
            replace(WITH_FIRST, virtual_size=2 * SIZE),
            ONE,
            f"resized from {SIZE} to {2 * SIZE} bytes since point {FIRST}",
        ),
        (
            disk(layer(BASE, replace(bitmap(FIRST), inconsistent=True))),
            ONE,
            f"the bitmap on {BASE} is inconsistent (QEMU ended without storing it)",
        ),
        (
            disk(layer(BASE, replace(bitmap(FIRST), recording=False))),
            ONE,
            f"the bitmap on {BASE} was disabled by somebody and has missed writes",
        ),
        (
            disk(layer(BASE, replace(bitmap(FIRST), busy=True))),
            ONE,
            f"the bitmap on {BASE} is in use by another job",
        ),
        (
            disk(layer(OVERLAY), layer(BASE, bitmap(FIRST))),
            ONE,
            f"image {OVERLAY} has no bitmap since the point",
        ),
        (
            disk(layer(OVERLAY, bitmap(FIRST)), layer(BASE)),
            ONE,
            f"image {BASE} has no bitmap since the point",
        ),
        (
            disk(
                layer(OVERLAY, bitmap(FIRST)),
                layer(BASE, replace(bitmap(FIRST), recording=False)),
            ),
            ONE,
            f"the bitmap on {BASE} was disabled by somebody and has missed writes",
        ),
        (
            disk(layer(OVERLAY, bitmap(FIRST))),
            ONE,
            f"image {BASE}, active at the point, is not in the backing chain any more",
        ),
        (
            disk(layer(BASE, replace(bitmap(FIRST), busy=True), bitmap(SECOND))),
            {FIRST: parent(FIRST), SECOND: parent(SECOND, trouble="is cut")},
            f"point {SECOND} is cut; the bitmap on {BASE} is in use by another job",
        ),
    ],
)
def test_a_full_follows_and_says_why(
    given: Disk, parents: dict[str, ParentDisk], reason: str
) -> None:
    assert decide(given, "auto", REPOSITORY, parents) == DiskPlan("full", reason=reason)


def test_of_two_good_parents_the_newer_is_taken() -> None:
    both = disk(layer(BASE, bitmap(FIRST), bitmap(SECOND)))
    assert decide(both, "auto", REPOSITORY, TWO).parent == SECOND


def test_an_older_parent_is_taken_where_the_newer_is_unfit() -> None:
    both = disk(layer(BASE, bitmap(FIRST), replace(bitmap(SECOND), inconsistent=True)))
    assert decide(both, "auto", REPOSITORY, TWO).parent == FIRST


def test_after_a_snapshot_the_bitmaps_of_every_layer_down_to_the_points_image_are_merged() -> None:
    older = layer("/images/older.qcow2")
    given = disk(layer(OVERLAY, bitmap(FIRST)), layer(BASE, bitmap(FIRST)), older)
    name = bitmap_name(REPOSITORY, FIRST)
    assert decide(given, "auto", REPOSITORY, ONE).sources == (
        (f"node-of-{OVERLAY}", name),
        (f"node-of-{BASE}", name),
    )


def test_a_deeper_image_with_the_bitmap_counts_too_since_file_names_come_again() -> None:
    again = {FIRST: parent(FIRST, source=OVERLAY)}
    name = bitmap_name(REPOSITORY, FIRST)
    given = disk(layer(OVERLAY, bitmap(FIRST)), layer(BASE, bitmap(FIRST)))
    assert decide(given, "auto", REPOSITORY, again).sources == (
        (f"node-of-{OVERLAY}", name),
        (f"node-of-{BASE}", name),
    )
    unfit = disk(
        layer(OVERLAY, bitmap(FIRST)), layer(BASE, replace(bitmap(FIRST), inconsistent=True))
    )
    assert decide(unfit, "auto", REPOSITORY, again).sync == "full"


def test_of_two_points_the_one_that_stands_on_the_other_is_the_newer_whatever_their_ids() -> None:
    older, newer = "20260101T000000Z-ffffffff", "20260101T000000Z-00000000"
    stands = ParentDisk(replace(parent(newer).disk, sync="incremental", parent=older))
    both = disk(layer(BASE, bitmap(older), bitmap(newer)))
    known = {older: parent(older), newer: stands}
    assert decide(both, "auto", REPOSITORY, known).parent == newer


def test_a_bitmaps_name_says_repository_point_disk_and_kind() -> None:
    ours = OurBitmap(REPOSITORY, FIRST, "vda")
    assert ours.name == f"virtvault.{REPOSITORY}.{FIRST}.vda"
    assert parse(ours.name) == ours
    assert parse(ours.witness) == OurBitmap(REPOSITORY, FIRST, "vda", "witness")
    assert parse("libvirt-checkpoint") is None
    assert parse("virtvault.what") == OurBitmap("what", "", "")


def test_another_disks_bitmap_on_an_image_that_moved_is_not_taken_for_this_disks() -> None:
    moved = replace(bitmap(FIRST), name=OurBitmap(REPOSITORY, FIRST, "vdb").name)
    assert decide(disk(layer(BASE, moved)), "auto", REPOSITORY, ONE).sync == "full"


def with_witness(point: str, count: int = 131072) -> ParentDisk:
    return ParentDisk(replace(parent(point).disk, witness=count))


def witness_of(point: str) -> Bitmap:
    name = OurBitmap(REPOSITORY, point, "vda").witness
    return Bitmap(name, False, False, True, False, 65536)


def test_the_witness_tells_which_image_was_active_whatever_its_file_is_called_now() -> None:
    given = disk(
        layer(OVERLAY, bitmap(FIRST)), layer("/images/renamed", bitmap(FIRST), witness_of(FIRST))
    )
    plan = decide(given, "auto", REPOSITORY, {FIRST: with_witness(FIRST)})
    name = OurBitmap(REPOSITORY, FIRST, "vda")
    assert plan.evidence == Evidence("node-of-/images/renamed", name.name, name.witness, 131072)
    assert len(plan.sources) == 2


def test_a_point_whose_witness_is_gone_is_not_built_on() -> None:
    plan = decide(WITH_FIRST, "auto", REPOSITORY, {FIRST: with_witness(FIRST)})
    assert plan.sync == "full"
    assert plan.reason.startswith("no image has the witness of the parent's bitmap any more")


# A week after the first of the three points.
NOW = datetime(2026, 1, 8, 0, 0, 1, tzinfo=UTC)
THREE = disk(layer(BASE, bitmap(THIRD)))


def chain(merged: tuple[str, ...] = ()) -> dict[str, ParentDisk]:
    def above(point: str, below: str) -> ParentDisk:
        return ParentDisk(replace(parent(point).disk, sync="incremental", parent=below))

    first = replace(parent(FIRST), merged=merged)
    return {FIRST: first, SECOND: above(SECOND, FIRST), THIRD: above(THIRD, SECOND)}


@pytest.mark.parametrize(
    ("points", "days", "reason"),
    [
        (0, 0, ""),
        (4, 8, ""),
        (3, 0, "the chain has 3 points: the policy wants a full after 3"),
        (2, 7, "the chain has 3 points: the policy wants a full after 2"),
        # Since midnight of the day on which the full was taken, whatever the hour.
        (0, 7, "the chain's full is 7 days old: the policy wants one after 7"),
        (4, 1, "the chain's full is 7 days old: the policy wants one after 1"),
    ],
)
def test_a_policy_gets_its_full_after_so_many_points_or_days(
    points: int, days: int, reason: str
) -> None:
    wanted = FullWanted(points, days, NOW)
    for asked in ("auto", "incremental"):
        plan = decide(THREE, asked, REPOSITORY, chain(), wanted=wanted)
        assert (plan.sync, plan.reason) == ("full" if reason else "incremental", reason)
    assert decide(THREE, "full", REPOSITORY, chain(), wanted=wanted) == DiskPlan("full")


def test_what_prune_has_merged_is_as_old_as_the_oldest_of_it() -> None:
    merged = chain(merged=("20251229T000000Z-00000000", "20251230T000000Z-00000000"))
    plan = decide(THREE, "auto", REPOSITORY, merged, wanted=FullWanted(0, 10, NOW))
    assert plan.reason == "the chain's full is 10 days old: the policy wants one after 10"


def test_a_disk_that_needs_a_full_anyway_says_why_and_not_what_the_policy_wants() -> None:
    plan = decide(disk(layer(BASE)), "auto", REPOSITORY, ONE, wanted=FullWanted(1, 1, NOW))
    assert plan.reason.startswith("no bitmap since the last point")
