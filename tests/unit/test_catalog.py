"""The catalog: what is recorded late, twice or in another order ends as the same catalog."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from tasks.catalog import Catalog
from tests.lab.stores import Stores
from virtvault import schemas
from virtvault.models import Point, PointDisk, PointStatus

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
REPOSITORY = "0123abcd"
FIRST, SECOND, THIRD = (f"2026010{n}T000000Z-{n:08x}" for n in (1, 2, 3))


def point(id_: str, parent: str = "", uuid: str = UUID, **more: Any) -> Point:
    disk = PointDisk(
        target="vda",
        file="vda.qcow2",
        sync="incremental" if parent else "full",
        parent=parent,
        reason="",
        virtual_size=2**30,
        transferred=0,
        stored=2**20,
        length=2**20,
        source="/images/a.qcow2",
        source_format="qcow2",
        bitmap="b",
        persistent=True,
    )
    when = f"{id_[:4]}-{id_[4:6]}-{id_[6:8]}T00:00:00.000Z"
    return Point(
        id=id_,
        repository="main",
        repository_id=REPOSITORY,
        task_id=f"task-{id_}",
        domain="web",
        uuid=uuid,
        host="hv1",
        instant=when,
        started=when,
        finished=when,
        consistency="crash-consistent",
        paused_ms=0.0,
        frozen_ms=0.0,
        isolated=True,
        disks=(disk,),
        **more,
    )


def status(id_: str, state: str = "ok", uuid: str = UUID, **more: Any) -> PointStatus:
    return PointStatus(id_, "main", REPOSITORY, uuid, state, **more)


def now(minute: int) -> str:
    return f"2026-02-01T00:{minute:02}:00.000Z"


def listed(catalog: Catalog) -> list[str]:
    return [item["id"] for item in catalog.points()]


def states(catalog: Catalog) -> dict[str, str]:
    return {item["point"]: item["state"] for item in catalog.statuses()}


@pytest.mark.parametrize(("kind", "count"), [("sqlite", 15), ("postgres", 4)])
def test_records_end_the_same_in_whatever_order_and_however_often_they_come(
    stores: Stores, kind: str, count: int
) -> None:
    merged = point(THIRD, merged=(SECOND,))
    records: list[dict[str, Any]] = [
        {"point": schemas.dump(point(FIRST))},
        {"point": schemas.dump(point(SECOND, FIRST))},
        {"point": schemas.dump(point(THIRD, SECOND))},
        {"point": schemas.dump(merged)},
        {"statuses": [schemas.dump(status(i)) for i in (FIRST, SECOND)], "at": now(1)},
        {"statuses": [schemas.dump(status(FIRST, "bad", why="x"))], "at": now(3)},
        {"removed": {"repository_id": REPOSITORY, "points": [SECOND], "at": now(2)}},
    ]
    for order in random.Random(1).sample(list(permutations(records)), count):
        catalog = stores.catalog(kind)
        for record in (*order, *order[::2]):
            catalog.record(record)
        assert catalog.points() == [schemas.dump(point(FIRST)), schemas.dump(merged)]
        assert states(catalog) == {FIRST: "bad"}
        assert catalog.fate(SECOND) == {"status": None, "removed": now(2)}
        # FIRST is bad, so THIRD is the newest good one; it stands on SECOND, which is gone.
        newest = [(n.point, n.points, n.stored) for n in catalog.newest()]
        assert newest == [(THIRD, 2, 2 * 2**20)]


REBUILDS: dict[str, tuple[Callable[[Catalog], object], list[str]]] = {
    "what was recorded since stays": (lambda c: c.record_point(point(THIRD)), [FIRST, THIRD]),
    "what was pruned since does not come back": (
        lambda c: c.record_removed(REPOSITORY, [FIRST], now(6)),
        [],
    ),
    "what was pruned before and is there again is listed": (
        lambda c: c.record_removed(REPOSITORY, [FIRST], now(4)),
        [FIRST],
    ),
}


@pytest.mark.parametrize("what", REBUILDS)
def test_a_rebuild_while_things_happen(catalog: Catalog, what: str) -> None:
    """The look was at minute 5, and knew of SECOND, which it did not find."""
    happens, expected = REBUILDS[what]
    for id_ in (FIRST, SECOND):
        catalog.record_point(point(id_))
        catalog.record_statuses([status(id_)], now(1))
    elsewhere = replace(point(SECOND), repository_id="ffffffff")
    catalog.record_point(elsewhere)
    happens(catalog)
    for _ in range(2):
        catalog.rebuild(REPOSITORY, UUID, now(5), [point(FIRST)], [status(FIRST)], [SECOND], [])
    assert listed(catalog) == sorted([*expected, elsewhere.id])
    assert set(states(catalog)) == set(expected) & {FIRST}


def test_a_rebuild_keeps_what_a_point_became_meanwhile(catalog: Catalog) -> None:
    merged = point(SECOND, merged=(FIRST,))
    catalog.record_point(merged)
    catalog.record_statuses([status(SECOND, "bad", why="x")], now(6))
    catalog.rebuild(REPOSITORY, UUID, now(5), [point(SECOND, FIRST)], [status(SECOND)], [], [])
    assert catalog.points() == [schemas.dump(merged)]
    assert states(catalog) == {SECOND: "bad"}


def test_an_unreadable_point_has_a_state_and_no_row_and_leaves_with_its_directory(
    catalog: Catalog,
) -> None:
    broken = status(FIRST, "broken", why="cannot be read")
    catalog.record_point(point(FIRST))
    catalog.record_point(point(SECOND, uuid=OTHER))
    catalog.rebuild(REPOSITORY, UUID, now(1), [], [broken], [], [FIRST])
    assert (listed(catalog), states(catalog)) == ([SECOND], {FIRST: "broken"})
    assert catalog.known() == {REPOSITORY: {UUID: [FIRST], OTHER: [SECOND]}}
    assert catalog.fate(FIRST)["status"] == schemas.dump(broken)
    catalog.rebuild(REPOSITORY, UUID, now(2), [], [], [FIRST], [])
    assert states(catalog) == {}
    assert listed(catalog) == [SECOND]


def test_states_are_found_by_the_domains_name_too(catalog: Catalog) -> None:
    catalog.record_point(point(FIRST))
    catalog.record_statuses([status(FIRST), status(SECOND, uuid=OTHER)], now(1))
    for domain in ("web", UUID):
        assert [item["point"] for item in catalog.statuses(domain)] == [FIRST]
    assert len(catalog.statuses()) == 2


def test_a_point_that_a_look_did_not_find_is_broken_until_it_is_found_again(
    catalog: Catalog,
) -> None:
    elsewhere = replace(status(SECOND), repository_id="ffffffff")
    catalog.record_statuses([status(FIRST), status(SECOND, protected="x"), elsewhere], now(2))
    catalog.record_statuses([status(FIRST)], now(1))  # late: of before SECOND was there
    assert set(states(catalog).values()) == {"ok"}
    catalog.record_statuses([status(FIRST)], now(3))
    assert catalog.fate(FIRST)["status"]["state"] == "ok"
    away = status(SECOND, "broken", why=f"it was not there on {now(3)}", protected="x")
    assert schemas.dump(away) in catalog.statuses()
    assert schemas.dump(elsewhere) in catalog.statuses()
    catalog.record_statuses([status(FIRST), status(SECOND)], now(4))
    assert set(states(catalog).values()) == {"ok"}
