"""What waiting work may begin, and when failed work is tried again: pure."""

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from beat import entries
from beat.entries import Entry, Origin, Work, instant, moment
from beat.records import Records
from beat.room import Room
from virtvault import schemas
from virtvault.models import Limits, Policy, Schedule, Selector

NOW = instant("2026-06-01T12:00:00.000Z")
UUID = "00000000-0000-4000-8000-000000000001"
DAILY = Schedule(cron="0 2 * * *", window=7200, spread=3600)


def work(number: int = 0, policy: str = "p", kind: str = "backup", **more: Any) -> Work:
    name = f"{policy}/{kind}/{UUID[:-2]}{number:02d}"
    return Work(name, NOW, NOW, NOW + 3600, **more)


def test_an_attempt_has_one_id_whoever_makes_it() -> None:
    origin = Origin(Entry("p", "backup", UUID), NOW, 2)
    assert Origin.parse(str(origin)) == origin
    assert origin.task_id == Origin.parse(str(origin)).task_id
    others = [replace(work(1), attempt=3), work(2), replace(work(1), slot=NOW + 60)]
    ids = {w.origin.task_id for w in [work(1), *others]}
    assert len(ids) == 4
    with pytest.raises(ValueError):
        Origin.parse("by hand")


def test_work_comes_back_from_redis_as_it_was() -> None:
    made = work(1, begin=NOW + 0.25, why="it's “full”", busy=True, request='{"a": 1}')
    assert Work.load(made.dump()) == made


def test_the_log_says_what_became_of_a_slot(caplog: pytest.LogCaptureFixture) -> None:
    made = work(1, attempt=2, domain="db1", host="hv1", task_id="t1")
    records = Records(cast(Any, None), cast(Any, None))
    with caplog.at_level("INFO"):
        records.added([json.dumps(schemas.dump(made.record("failed", NOW, "No room.\nNone.")))])
    assert caplog.messages == [
        "failed backup of db1 on hv1: policy p, slot 2026-06-01T12:00:00.000Z, task t1, attempt 2; "
        "No room. None."
    ]
    assert len(list(records)) == 1


def test_retries_back_off_to_half_an_hour_and_not_all_at_once() -> None:
    pauses = [entries.backoff(replace(work(1), attempt=n)) for n in range(1, 12)]
    for number, pause in enumerate(pauses):
        least = min(60 * 2**number, 1800)
        assert least <= pause < least * 1.25
    assert len({entries.backoff(work(n)) for n in range(20)}) > 10


def test_a_new_domain_is_backed_up_soon_and_in_its_place() -> None:
    firsts = [entries.first_at(DAILY, f"{n}", NOW) - NOW for n in range(500)]
    assert all(0 < first <= 3601 for first in firsts)
    assert max(sum(1 for f in firsts if f // 360 == part) for part in range(11)) < 100
    # Not later than the schedule itself says.
    soon = Schedule(every=60, spread=0)
    assert entries.first_at(soon, "x", NOW) <= NOW + 60


def test_missed_slots_are_counted_and_the_last_is_named() -> None:
    hourly = Schedule(every=3600, spread=0)
    assert entries.missed(hourly, "x", NOW, NOW + 10 * 3600) == (10, NOW + 9 * 3600)
    assert entries.missed(hourly, "x", NOW + 1, NOW + 3600) == (0, 0.0)
    count, last = entries.missed(Schedule(every=60), "x", NOW - 400 * 86_400, NOW)
    assert count == entries.COUNTED and last < NOW
    after = entries.following(DAILY, UUID, instant("2026-06-01T02:00:00.000Z"))
    assert moment(after.slot) == "2026-06-02T02:00:00.000Z"


def test_room_is_what_every_limit_leaves() -> None:
    policy = Policy("p", Selector(), DAILY, limits=Limits(per_repository=2))
    flights = [work(n, host="h1", repository="main") for n in range(2)]
    room = Room(Limits(per_host=3, total=4), flights)
    entry = Entry.parse(work(9).entry)
    assert "policy p's limit of 2" in room.why_not(entry, policy, "h2", "main")
    assert room.why_not(entry, policy, "h1", "other") == ""
    room.take(work(3, policy="q", kind="verify", host="h1", repository="other"))
    assert "3 at a time on host h1" in room.why_not(entry, policy, "h1", "other")
    assert room.why_not(entry, policy, "h2", "other") == ""
    room.take(work(4, policy="q", host="h2", repository="other"))
    assert room.why_not(entry, policy, "h2", "third") == "the limit of 4 at a time was reached"
    busy = Entry("other", "backup", Entry.parse(flights[0].entry).uuid)
    assert "backup of the domain" in Room(Limits(), flights).why_not(busy, policy, "h1", "x")
    assert Room(Limits(), flights).why_not(busy._replace(kind="verify"), policy, "h1", "x") == ""
