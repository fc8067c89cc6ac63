"""What the retention rules keep, and why: golden files that people can read, and properties.

``python -m tests.unit.test_retention`` writes ``tests/unit/retention/*.json`` anew; the difference
is what a change of the rules means.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from virtvault.models import RetentionRules
from workers.retention import Candidate, Decision, decide

GOLDEN = Path(__file__).with_name("retention")
# Longer listings of removed points say nothing more.
LISTED = 40
ALL_RULES = RetentionRules(
    last=3, hourly=6, daily=7, weekly=4, monthly=12, yearly=3, within=2 * 86400
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def point(when: datetime | str, number: int = 0, **more: Any) -> Candidate:
    moment = at(when) if isinstance(when, str) else when
    return Candidate(
        id=f"{moment:%Y%m%dT%H%M%SZ}-{number:08x}",
        instant=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        **more,
    )


def some(*moments: str) -> Iterator[Candidate]:
    return (point(moment, number) for number, moment in enumerate(moments))


def every(step: timedelta, start: str, end: str) -> Iterator[datetime]:
    moment = at(start)
    while moment <= at(end):
        yield moment
        moment += step


HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True)
class Scenario:
    about: str
    now: str
    rules: RetentionRules
    points: tuple[Candidate, ...]


def scenario(about: str, now: str, rules: RetentionRules, points: Iterable[Candidate]) -> Scenario:
    return Scenario(about, now, rules, tuple(points))


SCENARIOS = {
    "dense-year": scenario(
        "one point an hour for more than a year, all rules at once",
        "2026-11-23T18:30",
        ALL_RULES,
        (point(m) for m in every(HOUR, "2025-09-30T00:05", "2026-11-23T18:05")),
    ),
    "gaps": scenario(
        "days without points are not counted: daily 4 reaches back over two months",
        "2026-11-23T18:30",
        RetentionRules(daily=4),
        some(
            *("2026-09-14T01:00", "2026-09-15T01:00", "2026-09-15T13:00", "2026-10-31T23:59"),
            *("2026-11-01T00:00", "2026-11-20T01:00", "2026-11-20T02:00"),
        ),
    ),
    "clocks-changed": scenario(
        "the nights Europe and America changed their clocks: hours and days are UTC's, none is "
        "double or missing",
        "2026-11-02T00:00",
        RetentionRules(hourly=6, daily=9),
        (
            point(m)
            for night in ("2026-03-29", "2026-10-25", "2026-11-01")
            for m in every(HOUR, f"{night}T00:30", f"{night}T03:30")
        ),
    ),
    "week-53": scenario(
        "2026 has a week 53, and the first days of 2027 are in it: weeks are ISO's, years are not",
        "2027-01-12T12:00",
        RetentionRules(weekly=4, yearly=2),
        (point(m) for m in every(DAY, "2026-12-15T03:00", "2027-01-12T03:00")),
    ),
    "leap-day": scenario(
        "29 February is a day and belongs to February",
        "2028-03-02T12:00",
        RetentionRules(daily=3, monthly=2),
        (point(m) for m in every(DAY, "2028-02-25T23:59", "2028-03-01T23:59")),
    ),
    "bucket-borders": scenario(
        "a millisecond apart, and in another hour, day, week, month and year",
        "2024-01-01T00:30",
        RetentionRules(hourly=2, daily=2, weekly=2, monthly=2, yearly=2),
        some(
            *("2023-12-31T23:00:00.000", "2023-12-31T23:59:59.999"),
            *("2024-01-01T00:00:00.000", "2024-01-01T00:00:00.001"),
        ),
    ),
    "equal-instants": scenario(
        "of points of one instant the higher id counts as the newer",
        "2026-11-23T18:30",
        RetentionRules(daily=2),
        (point(f"2026-11-{day}T03:00", n) for day in (21, 22) for n in (2, 1, 3)),
    ),
    "within": scenario(
        "exactly as old as the limit is within it",
        "2026-11-23T18:30",
        RetentionRules(within=36 * 3600),
        some(
            *("2026-11-22T06:29:59.999", "2026-11-22T06:30", "2026-11-22T06:30:00.001"),
            "2026-11-23T18:30",
        ),
    ),
    "newest": scenario(
        "the newest stays though no rule wants it",
        "2026-11-23T18:30",
        RetentionRules(within=3600),
        some("2026-01-01T00:00", "2026-01-02T00:00"),
    ),
    "protected": scenario(
        "protected points stay, and take the places that are theirs by the rules",
        "2026-11-23T18:30",
        RetentionRules(last=2),
        (
            point("2025-01-01T00:00", protected="before the migration"),
            point("2026-11-20T00:00"),
            point("2026-11-21T00:00"),
            point("2026-11-22T00:00", protected="handed to the auditors"),
            point("2026-11-23T00:00"),
        ),
    ),
    "damaged": scenario(
        "a bad or broken point takes no good one's place, and stays where it would if it were good",
        "2026-11-23T18:30",
        RetentionRules(last=2, daily=3),
        (
            point("2026-11-17T03:00", state="bad"),
            point("2026-11-18T03:00"),
            point("2026-11-19T03:00"),
            point("2026-11-20T03:00"),
            point("2026-11-20T15:00", state="bad"),
            point("2026-11-21T03:00"),
            point("2026-11-21T03:30", state="broken"),
            point("2026-11-21T15:00"),
            point("2026-11-22T03:00", state="broken"),
            point("2026-11-23T03:00", state="broken"),
        ),
    ),
    "only-damaged": scenario(
        "where nothing is good, what there is stays by the same rules",
        "2026-11-23T18:30",
        RetentionRules(daily=1),
        (
            point("2026-11-21T03:00", state="bad"),
            point("2026-11-22T03:00", state="broken"),
        ),
    ),
    "going": scenario(
        "what is already being removed is wanted by no rule, not even when protected too late",
        "2026-11-23T18:30",
        RetentionRules(last=2),
        (
            point("2026-11-20T03:00"),
            point("2026-11-21T03:00"),
            point("2026-11-22T03:00", state="pruning", protected="too late"),
            point("2026-11-23T03:00"),
        ),
    ),
    "future": scenario(
        "points dated after now stay, and take no place of the others",
        "2026-11-23T18:30",
        RetentionRules(last=1, yearly=1),
        some(
            *("2026-11-21T03:00", "2026-11-22T03:00", "2026-11-23T18:30:00.001"),
            "2031-01-01T00:00",
        ),
    ),
    "some-disks": scenario(
        "a later point of one disk takes no place of an earlier one of all; a disk that the "
        "domain has no more keeps its last points",
        "2026-11-23T18:30",
        RetentionRules(last=1, daily=2),
        (
            point("2026-06-01T03:00", disks=("vda", "vdb", "vdz")),
            point("2026-11-21T03:00", disks=("vda", "vdb")),
            point("2026-11-22T03:00", disks=("vda", "vdb")),
            point("2026-11-23T03:00", disks=("vda", "vdb")),
            point("2026-11-23T15:00", disks=("vda",)),
        ),
    ),
    "no-rules": scenario(
        "no rules at all remove nothing",
        "2026-11-23T18:30",
        RetentionRules(),
        some("2026-01-01T00:00", "2026-01-02T00:00"),
    ),
    "no-points": scenario("nothing to decide", "2026-11-23T18:30", ALL_RULES, ()),
}


def golden(given: Scenario) -> str:
    """What a golden file holds: newest first, a point a line."""
    decisions = decide(given.points, given.rules, at(given.now))
    assert len(decisions) == len(given.points)
    told = {p.id: _told(p) for p in given.points}
    kept = [f"{told[i]}: {'; '.join(d.reasons)}" for i, d in decisions.items() if d.keep]
    removed = [f"{told[i]}: {'; '.join(d.reasons)}" for i, d in decisions.items() if not d.keep]
    content = {
        "about": given.about,
        "now": given.now,
        "rules": {name: value for name, value in asdict(given.rules).items() if value},
        "points": len(given.points),
        "keep": kept,
        "remove": removed if len(removed) <= LISTED else f"the other {len(removed)}",
    }
    return json.dumps(content, indent=1) + "\n"


def _told(candidate: Candidate) -> str:
    parts = [candidate.id, *candidate.disks]
    if candidate.state != "ok":
        parts.append(candidate.state)
    return " ".join(parts)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_kept_and_why_is_what_the_golden_file_says(name: str) -> None:
    assert golden(SCENARIOS[name]) == (GOLDEN / f"{name}.json").read_text()


def test_every_golden_file_is_a_scenario() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(SCENARIOS)


# -- properties, over points and rules by chance; the seed is the test's number --------------------

NOW = at("2026-11-23T18:30")


def by_chance(seed: int) -> tuple[list[Candidate], RetentionRules]:
    chance = random.Random(seed)
    span = chance.choice((3, 60, 900)) * 86400
    points = []
    for number in range(chance.randrange(1, 90)):
        seconds = chance.randrange(-86400 if chance.random() < 0.05 else 0, span)
        points.append(
            point(
                NOW - timedelta(seconds=seconds // 600 * 600),
                number,
                protected="asked for" if chance.random() < 0.05 else "",
                state=chance.choices(("ok", "bad", "broken", "pruning"), (85, 6, 6, 3))[0],
                disks=chance.choice((("vda",), ("vda", "vdb"), ("vda", "vdb"))),
            )
        )
    rules = {
        rule: chance.randrange(1, 9) * (86400 if rule == "within" else 1)
        for rule in asdict(RetentionRules())
        if chance.random() < 0.4
    }
    return points, RetentionRules(**rules or {"last": 2})


def kept(decisions: dict[str, Decision]) -> set[str]:
    return {id_ for id_, decision in decisions.items() if decision.keep}


@pytest.mark.parametrize("seed", range(60))
def test_what_holds_whatever_the_points_and_rules(seed: int) -> None:
    points, rules = by_chance(seed)
    decisions = decide(points, rules, NOW)
    by_id = {p.id: p for p in points}
    assert set(decisions) == set(by_id)
    assert all(decision.reasons for decision in decisions.values())
    keep = kept(decisions)

    # The order they come in decides nothing.
    shuffled = random.Random(seed).sample(points, len(points))
    assert decide(shuffled, rules, NOW) == decisions

    # A further rule, or a larger one, removes nothing.
    for rule, value in asdict(rules).items():
        for more in (value + 1, value + 86400):
            assert keep <= kept(decide(points, replace(rules, **{rule: more}), NOW)), rule

    # The newest good one of each disk stays, and all that is protected.
    for disk in ("vda", "vdb"):
        past = [p for p in points if disk in p.disks and p.state == "ok" and p.instant <= stamp()]
        if past:
            assert max(past, key=lambda p: (p.instant, p.id)).id in keep
    assert {p.id for p in points if p.protected and p.state != "pruning"} <= keep

    # Pruned once, nothing more goes.
    assert kept(decide([p for p in points if p.id in keep], rules, NOW)) == keep

    # Damaged points come and go without any good one noticing.
    good = [p for p in points if p.state == "ok"]
    assert kept(decide(good, rules, NOW)) == {i for i in keep if by_id[i].state == "ok"}


@pytest.mark.parametrize("seed", range(30))
def test_a_rule_alone_keeps_the_newest_of_as_many_buckets_as_it_counts(seed: int) -> None:
    """Against another way to count: days, hours and so on as prefixes of the instant."""
    points = [replace(p, protected="", state="ok", disks=()) for p in by_chance(seed)[0]]
    points = [p for p in points if p.instant <= stamp()]
    for rule, prefix in (("yearly", 4), ("monthly", 7), ("daily", 10), ("hourly", 13)):
        for count in (1, 3, 1000):
            newest: dict[str, Candidate] = {}
            for p in sorted(points, key=lambda p: (p.instant, p.id)):
                newest[p.instant[:prefix]] = p
            wanted = {newest[name].id for name in sorted(newest)[-count:]}
            assert kept(decide(points, RetentionRules(**{rule: count}), NOW)) == wanted, rule


def stamp() -> str:
    return NOW.isoformat(timespec="milliseconds").replace("+00:00", "Z")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name, given in SCENARIOS.items():
        (GOLDEN / f"{name}.json").write_text(golden(given))
    print(f"{len(SCENARIOS)} files in {GOLDEN}")
