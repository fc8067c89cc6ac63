"""When slots come: across clock changes, by interval, over the spread, forwards and backwards."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from beat.due import Due, between, latest_due, next_due, place, schedules, window
from virtvault.models import Policy, RetentionRules, Schedule, Selector

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

VIENNA, NEW_YORK, LORD_HOWE = "Europe/Vienna", "America/New_York", "Australia/Lord_Howe"
# The instants at which the clock is changed in 2026: ahead, back. By half an hour on Lord Howe.
CHANGES = {
    VIENNA: ("2026-03-29T01:00", "2026-10-25T01:00"),
    NEW_YORK: ("2026-03-08T07:00", "2026-11-01T06:00"),
    LORD_HOWE: ("2026-10-03T15:30", "2026-04-04T15:00"),
}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def slots(cron: str, zone: str, start: datetime, end: datetime) -> list[str]:
    """The slots as UTC, without the year."""
    schedule = Schedule(cron=cron, timezone=zone, spread=0)
    return [f"{due.slot:%m-%d %H:%M}" for due in between(schedule, "", start, end)]


@pytest.mark.parametrize(
    ("zone", "change", "cron", "expected"),
    [
        # Ahead: 02:00 becomes 03:00. What is jumped over runs at the jump, once.
        (VIENNA, 0, "30 2 * * *", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        (
            VIENNA,
            0,
            "0,30 2 * * *",
            ["03-28 01:00", "03-28 01:30", "03-29 01:00", "03-30 00:00", "03-30 00:30"],
        ),
        (VIENNA, 0, "*/20 2 29 3 *", ["03-29 01:00"]),
        (VIENNA, 0, "30 2,3 29 * *", ["03-29 01:00", "03-29 01:30"]),
        (VIENNA, 0, "0 3 * * *", ["03-28 02:00", "03-29 01:00", "03-30 01:00"]),
        (NEW_YORK, 0, "15 2 * * *", ["03-07 07:15", "03-08 07:00", "03-09 06:15"]),
        # Half an hour ahead, at 02:00: 02:15 is not, 02:30 is at the jump.
        (LORD_HOWE, 0, "15 2 * * *", ["10-02 15:45", "10-03 15:30", "10-04 15:15"]),
        # Back: 03:00 becomes 02:00. What is shown twice runs the first time.
        (VIENNA, 1, "30 2 * * *", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
        (VIENNA, 1, "0 2,3 25 10 *", ["10-25 00:00", "10-25 02:00"]),
        (NEW_YORK, 1, "30 1 * * *", ["10-31 05:30", "11-01 05:30", "11-02 06:30"]),
        (LORD_HOWE, 1, "45 1 * * *", ["04-03 14:45", "04-04 14:45", "04-05 15:15"]),
    ],
)
def test_a_time_of_the_clock_runs_once_through_each_change(
    zone: str, change: int, cron: str, expected: list[str]
) -> None:
    at = utc(CHANGES[zone][change])
    start = at.replace(hour=0, minute=0) - DAY
    assert slots(cron, zone, start, start + 3 * DAY) == expected


@pytest.mark.parametrize("zone", CHANGES)
@pytest.mark.parametrize("change", [0, 1])
@pytest.mark.parametrize("step", [5, 10, 15])
def test_where_the_hour_is_a_star_runs_go_on_as_time_does(
    zone: str, change: int, step: int
) -> None:
    at = utc(CHANGES[zone][change])
    schedule = Schedule(cron=f"*/{step} * * * *", timezone=zone, spread=0)
    found = [due.slot for due in between(schedule, "", at - DAY, at + DAY)]
    assert {b - a for a, b in itertools.pairwise(found)} == {step * MINUTE}


def test_an_hour_whose_only_run_was_skipped_with_half_of_it_runs_at_the_jump() -> None:
    assert slots("0 * * * *", LORD_HOWE, utc("2026-10-03T14:00"), utc("2026-10-03T17:30")) == [
        "10-03 14:30",
        "10-03 15:30",  # 02:00 would be; the clock goes from 01:59 to 02:30
        "10-03 16:00",
        "10-03 17:00",
    ]


def _oracle(cron: str, zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    """Slots of fixed hours, the slow way: each minute that the clock should show, once."""
    minutes, hours = ({int(n) for n in part.split(",")} for part in cron.split()[:2])
    there = ZoneInfo(zone)
    seen: set[datetime] = set()
    wall = (start - DAY).replace(tzinfo=None)
    while wall < (end + DAY).replace(tzinfo=None):
        if wall.minute in minutes and wall.hour in hours:
            instant = wall.replace(tzinfo=there).astimezone(UTC)
            if instant.astimezone(there).replace(tzinfo=None) != wall:
                instant = wall.replace(tzinfo=there, fold=1).astimezone(UTC)
                while instant.astimezone(there).replace(tzinfo=None) < wall:
                    instant += MINUTE
            if start <= instant < end and instant not in seen:
                seen.add(instant)
                yield instant
        wall += MINUTE


def test_slots_are_those_that_a_slow_walk_over_every_minute_finds() -> None:
    rng = random.Random(5)
    for zone, changes in CHANGES.items():
        for change in changes:
            start, end = utc(change) - DAY, utc(change) + DAY
            for _ in range(6):
                minute = ",".join(str(rng.randrange(60)) for _ in range(rng.choice((1, 3))))
                hour = ",".join(str(rng.randrange(5)) for _ in range(rng.choice((1, 2, 4))))
                cron = f"{minute} {hour} * * *"
                schedule = Schedule(cron=cron, timezone=zone, spread=0)
                found = [due.slot for due in between(schedule, "", start, end)]
                assert found == sorted(_oracle(cron, zone, start, end)), (cron, zone)


CRONS = ("*/15 * * * *", "7 * * * *", "0 2 * * *", "30 1,2 * * *", "*/20 2 * * *", "0 */4 * * *",
         "15 3 * * 0", "0 4 1 * *", "0 2 29 2 *", "0 0 1-7 * 1", "30 2 L * *")  # fmt: skip


def _some_schedule(rng: random.Random) -> Schedule:
    if rng.random() < 0.3:
        return Schedule(every=rng.choice((60, 900, 5400, 86400, 100_000)))
    zone = rng.choice(("UTC", "Asia/Kathmandu", *CHANGES))
    spread = rng.choice((-1, 0, 600, 3600))
    return Schedule(cron=rng.choice(CRONS), timezone=zone, window=7200, spread=spread)


def _some_instant(rng: random.Random) -> datetime:
    changes = [utc(text) for both in CHANGES.values() for text in both]
    near = rng.choice(changes) + timedelta(seconds=rng.randint(-20_000, 20_000))
    anywhere = utc("2020-01-01") + timedelta(seconds=rng.uniform(0, 10 * 365 * 86400))
    return rng.choice((near, near.replace(second=0), anywhere))


def test_next_latest_and_between_agree_wherever_one_asks() -> None:
    rng = random.Random(7)
    for _ in range(600):
        schedule, now, key = _some_schedule(rng), _some_instant(rng), f"key {rng.random()}"
        following, last = next_due(schedule, key, now), latest_due(schedule, key, now)
        assert last.at <= now < following.at, (schedule, now)
        assert next_due(schedule, key, last.at) == following, (schedule, now)
        assert latest_due(schedule, key, following.at) == following, (schedule, now)
        assert latest_due(schedule, key, following.at - timedelta(microseconds=1)) == last
        walked, due = [], last
        for _ in range(5):
            walked.append(due)
            due = next_due(schedule, key, due.at)
            assert due.at > walked[-1].at
            assert due.slot > walked[-1].slot
        assert list(between(schedule, key, last.at, due.at)) == walked


def test_an_interval_counts_from_the_epoch_and_knows_no_clock_changes() -> None:
    six = Schedule(every=6 * 3600, spread=0)
    assert next_due(six, "", utc("2026-03-29T00:30")) == Due(
        utc("2026-03-29T06:00"), utc("2026-03-29T06:00"), utc("2026-03-29T12:00")
    )


def test_places_are_stable_even_and_inside_the_spread() -> None:
    schedule = Schedule(cron="0 2 * * *", window=3600)
    places = [place(schedule, f"domain {number}") for number in range(6000)]
    assert places == [place(schedule, f"domain {number}") for number in range(6000)]
    assert 0 <= min(places) <= max(places) < 1800
    sixths = [sum(s * 300 <= p < s * 300 + 300 for p in places) for s in range(6)]
    assert all(850 < count < 1150 for count in sixths)
    # Known elsewhere too: a beat of another version must not move the fleet.
    assert place(Schedule(every=3600), "11111111-2222-3333-4444-555555555555") == 720
    due = next_due(schedule, "domain 1", utc("2026-01-01"))
    assert due.slot == utc("2026-01-01T02:00")
    assert due.at == due.slot + timedelta(seconds=places[1])
    assert due.closes == utc("2026-01-01T03:00")


def test_a_zone_that_was_edited_gives_no_instant_twice_and_leaves_none_out() -> None:
    ran = utc("2026-06-01T00:00")  # 02:00 in Vienna
    same = Schedule(cron="0 2 * * *", timezone="Europe/Berlin", spread=0)
    assert next_due(same, "", ran).slot == utc("2026-06-02T00:00")
    west = Schedule(cron="0 2 * * *", timezone=NEW_YORK, spread=0)
    assert next_due(west, "", ran).slot == utc("2026-06-01T06:00")
    # Its time of today has passed: the last that is due is newer than the one that ran.
    east = Schedule(cron="0 2 * * *", timezone="Asia/Tokyo", spread=0)
    assert latest_due(east, "", utc("2026-06-01T20:00")).slot == utc("2026-06-01T17:00")


def test_many_domains_share_what_was_found_of_a_schedule() -> None:
    schedule = Schedule(cron="0 2 1 * *", timezone=VIENNA, window=86400)
    now = utc("2026-06-01T03:00")
    expected = {utc("2026-06-01"), utc("2026-07-01")}
    assert {next_due(schedule, str(n), now).slot for n in range(20_000)} == expected


def test_a_policy_schedules_its_backups_and_what_it_says_beside() -> None:
    nightly = Schedule(cron="0 2 * * *")
    policy = Policy("p", Selector(names=("*",)), nightly)
    assert schedules(policy) == {"backup": nightly}
    weekly = Schedule(cron="0 3 * * 0")
    full = Policy("p", policy.select, nightly, verify=weekly, boot_test=weekly, prune=weekly)
    # Without retention there is nothing to prune by.
    assert set(schedules(full)) == {"backup", "verify", "boot_test"}
    keeping = Policy("p", policy.select, nightly, retention=RetentionRules(daily=7))
    assert schedules(keeping)["prune"] == Schedule(every=86400, window=86400, spread=43200)
    assert schedules(Policy("p", policy.select, nightly, enabled=False)) == {}
    assert (window(nightly), window(Schedule(every=900))) == (3600, 900)
