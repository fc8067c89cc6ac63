"""What the Backups page shows, from made-up answers: pure, and shared by all who look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.web import page_answers, page_data, page_history
from tasks.web.page_answers import Answers, stamp
from tasks.web.page_data import Fleet
from virtvault.errors import NotReachable
from virtvault.models import (
    Alert,
    DomainStatus,
    FleetStatus,
    FleetTotals,
    HostInfo,
    Point,
    PointDisk,
    PointStatus,
    RepositoryInfo,
    RunInfo,
    SlotRecord,
)

NOW = datetime(2026, 3, 29, 12, tzinfo=UTC)
HOUR = 3600


def domain(name: str, health: str = "fresh", age: float = HOUR, **more: Any) -> DomainStatus:
    values: dict[str, Any] = {"host": "hv1", "state": "running", "rpo": 24 * HOUR, **more}
    return DomainStatus(domain=name, uuid=f"uuid-{name}", health=health, age=age, **values)


def fleet(*domains: DomainStatus, hosts: tuple[HostInfo, ...] = ()) -> Fleet:
    return Fleet(FleetStatus(stamp(NOW), FleetTotals(domains=len(domains)), domains, hosts))


def names(found: Fleet, search: str = "", only: str = "", sort: str = "attention") -> list[str]:
    return [row["domain"] for row in found.page(search, only, sort, False, 0)["rows"]]


def test_the_worst_is_first_and_the_most_overdue_first_of_all() -> None:
    found = fleet(
        domain("fresh"),
        domain("gone", state="unreachable"),
        domain("deleted", "unprotected", state="absent"),
        domain("failed", error="no room"),
        domain("bare", "unprotected", age=-1.0, rpo=0),
        domain("late by 1", "late", 25 * HOUR),
        domain("late by 40", "late", 64 * HOUR),
        domain("late and gone", "late", 26 * HOUR, state="unreachable"),
        domain("new", "never", -1.0),
    )
    assert names(found) == [
        *("late by 40", "late and gone", "late by 1", "new", "gone", "failed", "bare"),
        *("deleted", "fresh"),
    ]
    # Shown once each; found under all that is true of it.
    assert sum(found.summary["shown"].values()) == 9
    assert names(found, only="unreachable") == ["late and gone", "gone"]
    assert names(found, only="fresh") == ["gone", "failed", "fresh"]
    assert names(found, only="unprotected") == ["bare"]
    # No point at all is older than any.
    assert names(found, sort="age")[-2:] == ["bare", "new"]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("DB", ["db1", "db2"]),
        ("db hv2", ["db2"]),
        ("host:hv1", ["db1"]),
        ("host:hv", []),
        ("tier=prod", ["db1"]),
        ("tier=pro", []),
        ("nightly", ["db1"]),
        ("uuid-db2", ["db2"]),
    ],
)
def test_search(search: str, expected: list[str]) -> None:
    found = fleet(
        domain("db1", labels={"tier": "prod"}, policies=("nightly",)),
        domain("db2", host="hv2", labels={"tier": "production"}),
    )
    assert names(found, search) == expected


def test_pages_have_each_domain_once_and_end_where_the_fleet_does() -> None:
    found = fleet(*(domain(f"d{n:03}") for n in range(120)))
    pages = [found.page("", "", "domain", False, n, 50) for n in range(3)]
    assert [row["domain"] for page in pages for row in page["rows"]] == [
        f"d{n:03}" for n in range(120)
    ]
    assert found.page("", "", "domain", False, 99, 50)["page"] == 2
    assert found.page("nothing", "", "domain", True, 7, 50)["rows"] == []


def test_a_large_fleet_has_a_cell_for_each_hypervisor() -> None:
    found = fleet(
        *(domain(f"a{n}", host="hv-good") for n in range(page_data.CELLS)),
        domain("b", "late", 30 * HOUR, host="hv-bad"),
    )
    assert found.cells["of"] == "hosts"
    assert [host for host, _ in found.cells["cells"]] == ["hv-bad", "hv-good"]
    assert found.cells["cells"][0][1]["late"] == 1


def test_hypervisors_that_are_gone_and_full_come_first() -> None:
    def host(name: str, alive: bool, free: int) -> HostInfo:
        room = RepositoryInfo("main", free=free, size=100)
        return HostInfo(name, alive, stamp(NOW), storage=(room,))

    found = fleet(hosts=(host("roomy", True, 90), host("full", True, 1), host("gone", False, 90)))
    assert [one["host"] for one in found.hosts()] == ["gone", "full", "roomy"]


def test_open_alerts_the_gravest_first_whatever_their_kind() -> None:
    made = [
        Alert(kind, kind, stamp(NOW), "d", closed=closed)
        for kind, closed in (
            *(("failed", ""), ("of a newer central", ""), ("beat", "")),
            *(("host", stamp(NOW)), ("rpo", "")),
        )
    ]
    shown = [one["kind"] for one in page_data.alerts(made)]
    assert shown == ["beat", "rpo", "failed", "of a newer central"]


def point(id_: str, parent: str = "", hour: int = 0, **more: Any) -> Point:
    disk = PointDisk(
        *("vda", "vda.qcow2", "incremental" if parent else "full", parent, "", 100, 50, 40, 40),
        *("vda.qcow2", "qcow2", "", True),
    )
    moment = stamp(NOW + timedelta(hours=hour))
    values: dict[str, Any] = {"disks": (disk,), **more}
    return Point(
        *(id_, "main", "r1", "t", "db1", "u", "hv1", moment, moment, moment),
        *("crash-consistent", 0.0, 0.0, True),
        **values,
    )


def test_points_say_what_they_stand_on_and_how_many_a_restore_reads() -> None:
    made = [point("a"), point("b", "a", 1), point("c", "b", 2), point("d", "b", 3)]
    torn = PointStatus("e", "main", "r1", "u", "broken", "its manifest is not JSON")
    known = PointStatus("b", "main", "r1", "u", verdict="good", protected="kept")
    found = page_data.points(made, [known, torn])
    assert found["total"] == 5
    rows = {row["id"]: row for row in found["points"]}
    assert list(rows) == ["e", "d", "c", "b", "a"]
    assert [rows[id_]["needs"] for id_ in "abcd"] == [1, 2, 3, 3]
    assert rows["d"]["parents"] == ["b"]
    assert (rows["b"]["verdict"], rows["b"]["protected"]) == ("good", "kept")
    assert (rows["e"]["state"], rows["e"]["disks"]) == ("broken", [])
    # Nothing was told of it yet: that is not a good one.
    assert rows["a"]["state"] == "unknown"


def test_a_ring_of_parents_ends() -> None:
    assert page_data.points([point("a", "b"), point("b", "a")], [])["points"][0]["needs"] == 2


def run(task_id: str, minutes: float, state: str = "complete", **more: Any) -> RunInfo:
    """A run that ended so many minutes ago."""
    ended = stamp(NOW - timedelta(minutes=minutes))
    values: dict[str, Any] = {"kind": "backup", "host": "hv1", "seconds": 60.0, **more}
    finished = "" if state == "running" else ended
    return RunInfo(task_id, state=state, started=ended, finished=finished, **values)


def test_the_timeline_has_what_ran_what_did_not_and_the_worst_host_first() -> None:
    runs = [
        run("r", 5, "running"),
        run("a", 10),
        run("f", 20, "failed", host="hv2", error="x" * 1000),
        run("old", 60 * 25),
    ]
    at = stamp(NOW - timedelta(hours=2))
    slots = [
        SlotRecord("p", "u", "backup", at, state, at, host="hv3")
        for state in ("dispatched", "skipped", "failed")
    ]
    found = page_history.timeline(runs, slots, NOW)
    assert [host["host"] for host in found["hosts"]] == ["hv2", "hv3", "hv1"]
    assert found["totals"] == {
        **{"complete": 1, "running": 1, "failed": 1},
        **{"cancelled": 0, "missed": 0, "skipped": 1},
    }
    assert len(found["hosts"][0]["runs"][0]["error"]) == page_history.WORDS
    assert found["since"] == found["from"]


def test_what_was_cut_off_is_said() -> None:
    runs = [run(str(n), 10 * n) for n in range(5)]
    cut = page_history.timeline(runs, [], NOW, limit=5)
    assert cut["since"] == runs[-1].finished
    assert page_history.trends(runs, NOW, "24h", limit=5)["since"] == runs[-1].finished
    whole = page_history.trends(runs, NOW, "24h", limit=6)
    assert whole["since"] == whole["from"]


def test_trends_count_each_backup_in_its_bucket() -> None:
    runs = [
        run("1", 10, stored=5, transferred=7, seconds=10.0),
        run("2", 20, stored=5, transferred=7, seconds=30.0),
        run("3", 70, "failed", seconds=999.0),
        run("4", 70, kind="verify", seconds=999.0),
        run("5", 60 * 24 + 1),
        run("6", 0, "running"),
    ]
    buckets = page_history.trends(runs, NOW, "24h")["buckets"]
    assert len(buckets) == 24
    last, before = buckets[-1], buckets[-2]
    assert (last["stored"], last["transferred"], last["complete"]) == (10, 14, 2)
    assert (last["median"], last["longest"]) == (20.0, 30.0)
    assert (before["failed"], before["complete"], before["median"]) == (1, 0, None)
    assert sum(bucket["complete"] for bucket in buckets) == 2


def answered(body: Callable[[Answers], Any]) -> Any:
    with ThreadPoolExecutor(4) as threads:

        async def main() -> Any:
            return await body(Answers(threads))

        return asyncio.run(main())


def test_many_viewers_at_once_are_one_question() -> None:
    asked = []

    async def body(answers: Answers) -> list[Any]:
        looks = (answers.get("k", lambda: asked.append(1) or "said", 5.0) for _ in range(50))
        return [one.value for one in await asyncio.gather(*looks)]

    assert answered(body) == ["said"] * 50
    assert len(asked) == 1


def test_trouble_keeps_what_was_known_and_asks_nobody_else_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(page_answers.time, "monotonic", lambda: clock[0])
    asked: list[str] = []

    def silent() -> Any:
        asked.append("silent")
        raise NotReachable("nobody", "start it")

    async def body(answers: Answers) -> None:
        good = await answers.get("k", lambda: "old", 5.0)
        first = good.at
        clock[0] += 6
        answer = await answers.get("k", silent, 5.0)
        assert (answer.value, answer.at) == ("old", first)
        assert isinstance(answer.trouble, NotReachable)
        # Another question waits for nobody: it is told at once what the first one was told.
        other = await answers.get("other", silent, 5.0)
        assert (other.value, asked) == (None, ["silent"])
        assert other.trouble is not None
        clock[0] += page_answers.SILENCE + 0.1
        answer = await answers.get("k", lambda: "new", 5.0)
        assert (answer.value, answer.trouble) == ("new", None)
        assert (await answers.get("other", lambda: "there", 5.0)).value == "there"

    answered(body)


def test_what_took_long_is_kept_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(page_answers.time, "monotonic", lambda: clock[0])
    asked = []

    def slow() -> str:
        clock[0] += 3.0
        asked.append(1)
        return "said"

    async def body(answers: Answers) -> None:
        await answers.get("k", slow, 5.0)
        clock[0] += 3.0 * page_answers.COST_FACTOR - 1
        await answers.get("k", slow, 5.0)
        assert len(asked) == 1
        clock[0] += 2
        await answers.get("k", slow, 5.0)
        assert len(asked) == 2

    answered(body)


def test_a_fault_of_ours_is_no_traceback_for_the_viewer() -> None:
    async def body(answers: Answers) -> Any:
        return await answers.get("k", lambda: 1 / 0, 5.0)

    trouble = answered(body).trouble
    assert "ZeroDivisionError" in trouble.message
    assert "See Flower's log" in trouble.mend


def test_ages_of_a_domain_that_has_none_are_no_reason_to_fail() -> None:
    one = domain("x", "no rpo", age=-1.0, rpo=0)
    found = fleet(one, replace(one, domain="y", uuid="u2", age=5.0))
    assert names(found, sort="age") == ["y", "x"]
