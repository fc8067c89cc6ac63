"""What policies would do: domains, runs, what is kept, and what looks unintended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from beat import due
from beat.entries import moment
from beat.preview import Fleet, preview
from virtvault import schemas
from virtvault.models import (
    DomainInfo,
    Inventory,
    Limits,
    Policy,
    PolicyDocument,
    Preview,
    RepositoryInfo,
    RetentionRules,
    Schedule,
    Selector,
)
from workers.retention import Candidate

NOW = datetime(2026, 6, 1, 12, 30, tzinfo=UTC)
NIGHT = Schedule(cron="0 2 * * *", timezone="Europe/Vienna")
ALL = Selector(names=("*",))


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def domains(count: int, host: str = "hv-1", name: str = "web", first: int = 0) -> list[DomainInfo]:
    return [
        DomainInfo(f"{name}-{n}", uuid(first + n), host, "running", targets=("vda",))
        for n in range(count)
    ]


def host(name: str, *repositories: RepositoryInfo, default: str = "") -> Inventory:
    return Inventory(name, "2026-06-01T00:00:00.000Z", {}, repositories, (), default)


MAIN = RepositoryInfo("main", "0a1b2c3d")
HOSTS = {"hv-1": host("hv-1", MAIN, default="main"), "hv-2": host("hv-2", MAIN)}
PLAIN = Policy("plain", ALL, NIGHT)


def look(
    *policies: Policy, fleet: Fleet | None = None, limit: int = 1000, hours: int = 24
) -> Preview:
    given = fleet or Fleet(domains(3), HOSTS)
    return preview(PolicyDocument(policies), given, NOW, hours, limit)


def test_runs_are_those_that_beat_will_start_at_their_times() -> None:
    policy = Policy(
        *("p", ALL, Schedule(every=3600)),
        verify=NIGHT,
        boot_test=Schedule(cron="0 3 * * 0"),
        retention=RetentionRules(daily=7),
    )
    found = look(policy, hours=36)
    expected = sorted(
        (moment(run.at.timestamp()), kind, domain.uuid, moment(run.slot.timestamp()))
        for domain in domains(3)
        for kind, schedule in due.schedules(policy).items()
        for run in due.between(schedule, domain.uuid, NOW, NOW + timedelta(hours=36))
    )
    assert sorted((run.at, run.kind, run.uuid, run.slot) for run in found.runs) == expected
    assert [run.at for run in found.runs] == sorted(run.at for run in found.runs)
    assert found.total_runs == len(expected)
    assert {kind: sum(counts) for kind, counts in found.per_hour.items()} == {
        kind: sum(1 for _, k, *_ in expected if k == kind) for kind in ("backup", "verify", "prune")
    }
    first = found.runs[0]
    assert (first.policy, first.host, first.repository) == ("p", "hv-1", "main")
    assert schemas.load(Preview, schemas.dump(found)).runs == found.runs


@pytest.mark.parametrize("every", [60, 900, 86400])
def test_a_limit_cuts_the_list_and_not_the_counts(every: int) -> None:
    policy = Policy("p", ALL, Schedule(every=every))
    whole = look(policy, fleet=Fleet(domains(12), HOSTS), limit=10**6)
    cut = look(policy, fleet=Fleet(domains(12), HOSTS), limit=7)
    assert cut.runs == whole.runs[:7]
    assert cut.domains == whole.domains[:7]
    assert (cut.total_runs, cut.protected) == (len(whole.runs), 12)
    assert cut.per_hour == whole.per_hour
    begins = [moment(NOW.timestamp() + 3600 * n) for n in range(25)]
    hours = [sum(begin <= run.at < end for run in whole.runs) for begin, end in pairwise(begins)]
    assert list(cut.per_hour["backup"]) == hours


def test_each_domain_is_said_to_be_protected_by_which_or_by_none() -> None:
    fleet = Fleet([*domains(2), *domains(1, "hv-2", "db", 2)], HOSTS)
    web = Policy("web", Selector(names=("web-*",)), NIGHT, priority=1)
    one = Policy("one", Selector(names=("web-1",)), NIGHT)
    found = look(web, one, fleet=fleet)
    assert [(d.domain, d.policies) for d in found.domains] == [
        ("web-0", ("web",)),
        ("web-1", ("web",)),
    ]
    assert list(found.domains[1].shadowed) == ["one"]
    assert found.unprotected == ("hv-2/db-0",)

    new = PolicyDocument((replace(web, select=Selector(names=("web-0", "db-*"))),))
    after = preview(new, fleet, NOW, 0, 0, PolicyDocument((web, one)))
    assert (after.gains, after.loses) == (("hv-2/db-0",), ("hv-1/web-1",))
    assert (after.runs, after.domains, after.protected) == ((), (), 2)


def test_retention_is_looked_at_where_the_policy_stores() -> None:
    asked = []

    def points(uuid_: str, repository_id: str, name: str) -> Sequence[Candidate]:
        asked.append((uuid_, repository_id, name))
        days = (f"2026-05-{day}T02:00:00.000Z" for day in (28, 29, 30))
        return [Candidate(f"p{n}", at) for n, at in enumerate(days)]

    policy = replace(PLAIN, retention=RetentionRules(last=2))
    one = look(policy, fleet=Fleet(domains(1), HOSTS, points=points)).domains[0]
    assert asked == [(uuid(0), "0a1b2c3d", "main")]
    assert one.kept["p2"] == ("newest: the next incremental builds on it", "last 1 of 2")
    assert (list(one.kept), one.removed) == (["p2", "p1"], {"p0": ("no rule wants it",)})
    # Without retention all is kept, and a large fleet's points are not read for one answer.
    assert not look(PLAIN, fleet=Fleet(domains(1), HOSTS, points=points)).domains[0].removed
    asked.clear()
    many = look(policy, fleet=Fleet(domains(301), HOSTS, points=points))
    assert not asked
    assert many.warnings[-1].startswith("what retention keeps is not shown for 301 domains")


def warnings(*policies: Policy, fleet: Fleet | None = None, limits: Limits = Limits()) -> list[str]:  # noqa: B008 - frozen
    document = PolicyDocument(policies, limits)
    return list(preview(document, fleet or Fleet(domains(3), HOSTS), NOW, 0, 0).warnings)


def test_what_is_as_it_should_be_gives_no_warning() -> None:
    assert warnings(replace(PLAIN, rpo=90_001, disks=("vda",), limits=Limits(per_host=1))) == []


def test_what_looks_unintended_is_said_with_its_numbers() -> None:
    nothing = Policy("db", Selector(names=("db-*",)), NIGHT)
    assert warnings(nothing) == ["policy db means no domain that there is"]
    assert warnings(replace(nothing, enabled=False)) == []
    assert warnings(PLAIN, Policy("too", ALL, NIGHT)) == [
        "policy too holds for none of the 3 domains it means: others do"
    ]
    assert warnings(replace(PLAIN, disks=("vda", "vdz"))) == [
        "policy plain names disk vdz, which 3 of its 3 domains do not have, such as web-0: their "
        "backups will fail"
    ]


def test_a_repository_that_a_hypervisor_does_not_have_is_named() -> None:
    fleet = Fleet([*domains(2), *domains(1, "hv-2", "x", 2), *domains(1, "hv-3", "y", 3)], HOSTS)
    assert warnings(PLAIN, fleet=fleet) == [
        "policy plain names no repository and hypervisor hv-2 has no default: the backups of 1 "
        "domains there will fail; set repository here or default_repository there",
        "policy plain: hypervisor hv-3 has not told of its repositories yet",
    ]
    assert warnings(replace(PLAIN, repository="far")) == [
        "policy plain: hypervisor hv-1 has no repository far: the backups of 3 domains there will "
        "fail; it has main"
    ]
    away = {"hv-1": host("hv-1", replace(MAIN, why="not mounted"), default="main")}
    assert warnings(PLAIN, fleet=Fleet(domains(1), away)) == [
        "policy plain: hv-1 cannot use repository main: not mounted"
    ]


def test_an_rpo_and_a_window_that_cannot_hold_are_told() -> None:
    assert warnings(replace(PLAIN, rpo=86400)) == [
        "policy plain: an rpo of 1d cannot hold with up to 1d between its runs"
    ]
    weekdays = replace(PLAIN, schedule=Schedule(cron="0 2 * * 1-5"), rpo=2 * 86400)
    assert warnings(weekdays) == [
        "policy plain: an rpo of 2d cannot hold with up to 3d between its runs"
    ]
    yearly = replace(PLAIN, schedule=Schedule(cron="0 2 1 1 *"), rpo=300 * 86400)
    assert "up to 52w2d between its runs" in warnings(yearly)[0]

    hour = {uuid(n): 3600.0 for n in range(3)}
    slow = Fleet(domains(3), HOSTS, seconds=hour)
    assert warnings(PLAIN, fleet=slow) == []
    assert warnings(replace(PLAIN, limits=Limits(per_host=3)), fleet=slow) == []
    assert warnings(replace(PLAIN, late="skip"), fleet=slow, limits=Limits(per_host=2)) == [
        "policy plain: its last backups on hv-1 took 3h, 2 at a time are allowed, and the window "
        "is 1h: some will be skipped"
    ]
    assert "in all took 3h, 1 at a time" in warnings(PLAIN, fleet=slow, limits=Limits(total=1))[0]
