"""What removing points takes, decided without a repository."""

from __future__ import annotations

from typing import Any

from virtvault.models import Point, PointDisk
from workers.prune_plan import Merge, Plan, plan


def point(id_: str, **parents: str) -> Point:
    """A point whose disks stand on the given points; `vda` on nothing where none is named."""
    facts: dict[str, Any] = dict.fromkeys(
        ("repository", "repository_id", "task_id", "uuid", "host", "started", "finished"), ""
    )
    disks = tuple(
        PointDisk(target, f"{target}.qcow2", "incremental" if below else "full", below, "",
                  0, 0, 0, 0, "", "qcow2", "", True)
        for target, below in (parents or {"vda": ""}).items()
    )  # fmt: skip
    return Point(
        id=id_, domain="vm", instant=id_, consistency="", paused_ms=0, frozen_ms=0,
        isolated=True, disks=disks, **facts,
    )  # fmt: skip


LINE = [point("p1"), *(point(f"p{n}", vda=f"p{n - 1}") for n in range(2, 7))]


def planned(
    unwanted: str, points: list[Point] = LINE, *, needed: str = "", damaged: str = ""
) -> Plan:
    return plan(
        points,
        unwanted.split(),
        dict.fromkeys(needed.split(), "it is needed"),
        dict.fromkeys(damaged.split(), "is bad"),
    )


def test_increments_between_two_kept_points_become_one() -> None:
    assert planned("p2 p3 p5") == Plan(
        (Merge("vda", "p4", ("p3", "p2"), "p1"), Merge("vda", "p6", ("p5",), "p4")),
        ("p3", "p2", "p5"),
        {},
    )


def test_the_oldest_points_are_merged_into_the_oldest_kept_one_which_becomes_a_full() -> None:
    assert planned("p1 p2").merges == (Merge("vda", "p3", ("p2", "p1"), ""),)


def test_what_nothing_kept_stands_on_is_just_removed_the_topmost_first() -> None:
    assert planned("p4 p5 p6") == Plan((), ("p6", "p5", "p4"), {})


def test_each_disk_has_a_chain_of_its_own() -> None:
    points = [
        point("p1", vda="", vdb=""),
        point("p2", vda="p1", vdb=""),
        point("p3", vda="p2", vdb="p2"),
    ]
    made = planned("p2", points)
    assert made.merges == (Merge("vda", "p3", ("p2",), "p1"), Merge("vdb", "p3", ("p2",), ""))
    assert made.removed == ("p2",)


def test_a_point_that_two_kept_ones_stand_on_stays_until_one_of_them_is_gone() -> None:
    points = [*LINE[:3], point("b1", vda="p2"), point("b2", vda="b1")]
    made = planned("p2", points)
    assert (made.merges, made.removed) == ((), ())
    assert "b1, p3 both stand on disk vda of it" in made.kept_back["p2"]
    # The fork alone is kept back, not what lies above it.
    made = planned("p2 b1", points)
    assert made.merges == (Merge("vda", "b2", ("b1",), "p2"),)
    assert list(made.kept_back) == ["p2"]
    # With one branch going, its points lose what they stand on: the merge says so.
    made = planned("p2 b1 b2", points)
    assert made.merges == (Merge("vda", "p3", ("p2",), "p1", losing=("b1", "b2")),)
    assert made.removed == ("b2", "b1", "p2")


def test_needed_points_stay_and_the_others_are_merged_around_them() -> None:
    made = planned("p2 p3 p4", needed="p3")
    assert made.merges == (Merge("vda", "p3", ("p2",), "p1"), Merge("vda", "p5", ("p4",), "p3"))
    assert made.kept_back == {"p3": "it is needed"}


def test_nothing_is_merged_with_what_is_damaged() -> None:
    for damaged in ("p2", "p3", "p4"):
        made = planned("p2 p3", damaged=damaged)
        assert (made.merges, made.removed) == ((), ())
        assert made.kept_back["p2"] == f"point p4 stands on it, and {damaged} is bad"
    # What nothing kept stands on may go, damaged or not.
    assert planned("p5 p6", damaged="p5 p6").removed == ("p6", "p5")


def test_a_chain_that_needs_itself_is_no_endless_loop() -> None:
    points = [point("p1", vda="p2"), point("p2", vda="p1"), point("p3", vda="p2")]
    assert planned("p1 p2", points, damaged="p1 p2 p3").removed == ()
    assert set(planned("p1 p2 p3", points).removed) == {"p1", "p2", "p3"}
