"""Freshness of a domain, and the fleet in numbers, from made-up facts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from beat.matching import PolicyMatcher
from beat.status import Facts, fleet_status, one_of
from tasks.catalog import Newest
from virtvault.models import (
    DomainInfo,
    DomainStatus,
    FleetStatus,
    HostInfo,
    Policy,
    PolicyDocument,
    RunInfo,
    Schedule,
    Selector,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = 3600
DB1 = DomainInfo("db1", "uuid-db1", "hv1", "running", labels={"tier": "prod"})


def moment(ago: float) -> str:
    at = NOW - timedelta(seconds=ago)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def policy(name: str = "daily", rpo: int = 24 * HOUR, **fields: Any) -> Policy:
    return Policy(name, Selector(names=("db*",)), Schedule(every=HOUR), rpo=rpo, **fields)


def point(ago: float, repository: str = "main", id_: str = "", **fields: Any) -> Newest:
    found = Newest(
        uuid=DB1.uuid,
        domain="db1",
        repository_id=id_ or f"id-{repository}",
        repository=repository,
        point=f"point-{ago:.0f}",
        instant=moment(ago),
        chain=3,
        points=5,
        stored=100,
        host="hv1",
    )
    return replace(found, **fields)


def host(name: str, *, alive: bool = True) -> HostInfo:
    return HostInfo(name, alive, moment(0))


def look(
    *policies: Policy,
    points: Iterable[Newest] = (),
    domains: Iterable[DomainInfo] = (DB1,),
    **facts: Any,
) -> FleetStatus:
    given: dict[str, Any] = {
        "hosts": {"hv1": host("hv1")},
        "repositories": {"hv1": {"main": "id-main", "second": "id-second"}},
        "defaults": {"hv1": "main"},
        "last": {},
        **facts,
    }
    match = PolicyMatcher(PolicyDocument(policies)).match
    return fleet_status(
        Facts(now=NOW, domains=tuple(domains), newest=tuple(points), match=match, **given)
    )


def one(*policies: Policy, **facts: Any) -> DomainStatus:
    (found,) = look(*policies, **facts).domains
    return found


@pytest.mark.parametrize(
    ("policies", "points", "health", "rpo"),
    [
        ([], [], "unprotected", 0),
        ([], [point(60)], "unprotected", 0),
        ([policy()], [], "never", 24 * HOUR),
        ([policy()], [point(24 * HOUR)], "fresh", 24 * HOUR),
        ([policy()], [point(24 * HOUR + 1)], "late", 24 * HOUR),
        # Points of which none is good are no point.
        ([policy()], [point(60, point="", instant="", chain=0)], "never", 24 * HOUR),
        # A point elsewhere is no copy in the repository that the policy wants.
        ([policy()], [point(60, "second")], "never", 24 * HOUR),
        ([policy(repository="second")], [point(60, "second")], "fresh", 24 * HOUR),
        # Of the same name on another hypervisor, and yet another repository.
        ([policy()], [point(60, "main", id_="other")], "never", 24 * HOUR),
        ([policy(rpo=0)], [], "never", 0),
        ([policy(rpo=0)], [point(10**8)], "no rpo", 0),
        ([replace(policy(), enabled=False)], [point(60)], "unprotected", 0),
        # Of several the worst, with its own RPO; where none is worse the one nearest to its end.
        (
            [policy(), policy("b", HOUR, repository="second")],
            [point(2 * HOUR), point(2 * HOUR, "second")],
            "late",
            HOUR,
        ),
        ([policy(), policy("b", HOUR, repository="second")], [point(60)], "never", HOUR),
        (
            [policy(), policy("b", HOUR, repository="second")],
            [point(60), point(120, "second")],
            "fresh",
            HOUR,
        ),
        (
            [policy(), policy("b", 0, repository="second")],
            [point(60), point(10**8, "second")],
            "fresh",
            24 * HOUR,
        ),
    ],
)
def test_health(policies: list[Policy], points: list[Newest], health: str, rpo: int) -> None:
    found = one(*policies, points=points)
    assert (found.health, found.rpo) == (health, rpo)


def test_what_is_told_is_of_the_point_that_decides_and_the_sums_are_of_all() -> None:
    found = one(
        policy(),
        policy("b", HOUR, repository="second"),
        points=[point(60), point(2 * HOUR, "second", chain=9)],
    )
    assert found.policies == ("daily", "b")
    assert (found.newest, found.age, found.chain) == (f"point-{2 * HOUR}", 2 * HOUR, 9)
    assert (found.points, found.stored) == (10, 200)


def test_a_point_of_the_future_is_not_taken_for_fresh_and_that_is_said() -> None:
    slightly, far = one(policy(), points=[point(-5)]), one(policy(), points=[point(-2 * HOUR)])
    assert (slightly.health, slightly.age, slightly.error) == ("fresh", 0.0, "")
    assert (far.health, far.age) == ("late", 0.0)
    assert "7200 s ahead" in far.error
    assert "hv1" in far.mend


def test_a_domain_whose_hypervisor_is_gone_keeps_its_freshness() -> None:
    status = look(policy(), points=[point(25 * HOUR)], hosts={"hv1": host("hv1", alive=False)})
    assert (status.domains[0].state, status.domains[0].health) == ("unreachable", "late")
    assert (status.totals.hosts_gone, status.totals.unreachable, status.totals.late) == (1, 1, 1)


def test_an_absent_domain_is_shown_and_held_to_nothing() -> None:
    absent = replace(DB1, state="absent")
    status = look(policy(), points=[point(99 * HOUR)], domains=[absent])
    assert (status.domains[0].state, status.domains[0].health) == ("absent", "unprotected")
    assert (status.totals.domains, status.totals.unprotected, status.totals.points) == (0, 0, 5)
    # Of one without any point nothing is left to be looked after.
    assert look(policy(), domains=[absent]).domains == ()
    assert [d.state for d in look(policy(), domains=[DB1]).domains] == ["running"]


def test_boot_tests_are_no_domains() -> None:
    tested = replace(DB1, name="virtvault-verify-0123abcd", uuid="other")
    assert [d.domain for d in look(domains=[DB1, tested]).domains] == ["db1"]


def test_the_last_error_is_that_of_the_last_run() -> None:
    failed = RunInfo("t", "backup", "hv1", "failed", moment(60), moment(30), error="e", mend="m")
    found = look(policy(), points=[point(60)], last={DB1.uuid: failed})
    assert (found.domains[0].error, found.domains[0].mend) == ("e", "m")
    assert (found.domains[0].error_at, found.domains[0].health) == (moment(30), "fresh")
    assert found.totals.failing == 1
    cancelled = replace(failed, state="cancelled")
    assert look(last={DB1.uuid: cancelled}).totals.failing == 0


def test_one_domain_by_name_uuid_and_host() -> None:
    twin = replace(DB1, uuid="uuid-twin", host="hv2")
    gone = replace(DB1, uuid="uuid-gone", state="absent")
    status = look(domains=[DB1, twin, gone], points=[point(HOUR, uuid=gone.uuid)])
    for asked, uuids in {
        "db1": ["uuid-db1", "uuid-twin"],
        "hv2/db1": ["uuid-twin"],
        "uuid-gone": ["uuid-gone"],
        "nothing": [],
    }.items():
        assert [d.uuid for d in one_of(status, asked).domains] == uuids
