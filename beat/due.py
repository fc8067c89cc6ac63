"""When work of a schedule is due: pure decisions, ``now`` passed in.

A slot is an instant, and its UTC time is its name: whatever a clock shows, no instant comes twice.
``every`` counts from the epoch and knows no clock changes. The times of ``cron`` are what the
clock of its zone shows (:mod:`beat.clock` says what becomes of them where it is changed).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from beat.clock import Clock
from virtvault.models import Policy, RetentionRules, Schedule

__all__ = ["Due", "between", "latest_due", "next_due", "place", "schedules", "spread", "window"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CRON_WINDOW = 3600
DAY = 86_400
# Where there is any retention and no time for it: once a day, spread over half of it.
DAILY_PRUNE = Schedule(every=DAY, window=DAY, spread=DAY // 2)
# Consecutive slots that are remembered of a schedule: domains whose places in the spread differ
# ask for the same few.
KNOWN = 64


@dataclass(frozen=True)
class Due:
    """One slot for one domain: the time the schedule names, when its work is due, and the end of
    its window. All aware, UTC."""

    slot: datetime
    at: datetime
    closes: datetime


def next_due(schedule: Schedule, key: str, after: datetime) -> Due:
    """The first that is due later than ``after``. ``key`` decides on the place in the spread."""
    here = timedelta(seconds=place(schedule, key))
    return _due(schedule, here, _slots(schedule).around(after.astimezone(UTC) - here)[1])


def latest_due(schedule: Schedule, key: str, now: datetime) -> Due:
    """The last that is due at ``now`` or before."""
    here = timedelta(seconds=place(schedule, key))
    return _due(schedule, here, _slots(schedule).around(now.astimezone(UTC) - here)[0])


def between(schedule: Schedule, key: str, start: datetime, end: datetime) -> Iterator[Due]:
    """All that are due from ``start`` on and before ``end``."""
    due = next_due(schedule, key, start - timedelta(microseconds=1))
    while due.at < end:
        yield due
        due = next_due(schedule, key, due.at)


def schedules(policy: Policy) -> dict[str, Schedule]:
    """What a policy schedules, by :data:`virtvault.models.KINDS`; nothing where it is disabled."""
    if not policy.enabled:
        return {}
    found = {"backup": policy.schedule}
    if policy.verify is not None:
        found["verify"] = policy.verify
    if policy.boot_test is not None:
        found["boot_test"] = policy.boot_test
    if policy.retention != RetentionRules():
        found["prune"] = policy.prune or DAILY_PRUNE
    return found


def window(schedule: Schedule) -> int:
    """Seconds from a slot in which its work may begin."""
    return schedule.window or schedule.every or CRON_WINDOW


def spread(schedule: Schedule) -> int:
    """Seconds from a slot over which domains are spread."""
    return window(schedule) // 2 if schedule.spread < 0 else schedule.spread


def place(schedule: Schedule, key: str) -> int:
    """Seconds from a slot until the work of ``key`` is due: always the same, evenly spread."""
    hashed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return hashed * spread(schedule) >> 64


def _due(schedule: Schedule, here: timedelta, slot: datetime) -> Due:
    return Due(slot, slot + here, slot + timedelta(seconds=window(schedule)))


class _Every:
    """Slots at each multiple of so many seconds since the epoch."""

    def __init__(self, seconds: int) -> None:
        self._step = timedelta(seconds=seconds)

    def around(self, instant: datetime) -> tuple[datetime, datetime]:
        last = EPOCH + (instant - EPOCH) // self._step * self._step
        return last, last + self._step


class _Cron:
    """Slots at the times of a cron expression, the last few remembered."""

    def __init__(self, expression: str, timezone: str) -> None:
        self._clock = Clock(expression, timezone)
        # Consecutive, ascending. Replaced as a whole: another thread sees the old or the new.
        self._known: tuple[datetime, ...] = ()

    def around(self, instant: datetime) -> tuple[datetime, datetime]:
        """The last slot at ``instant`` or before, and the next one after it."""
        known = self._known
        if not (known and known[0] <= instant < known[-1]):
            known = self._known = self._look(known, instant)
        index = bisect_right(known, instant)
        return known[index - 1], known[index]

    def _look(self, known: tuple[datetime, ...], instant: datetime) -> tuple[datetime, ...]:
        if known and known[-1] <= instant:
            walked = list(known)
            while len(walked) < len(known) + KNOWN:
                walked.append(self._clock.after(walked[-1]))
                if instant < walked[-1]:
                    return tuple(walked[-KNOWN:])
        last = self._clock.last(instant)
        following = self._clock.after(last)
        if known and following == known[0]:
            return (last, *known[: KNOWN - 1])
        return (last, following)


@lru_cache(maxsize=1024)
def _slots(schedule: Schedule) -> _Every | _Cron:
    if schedule.every:
        return _Every(schedule.every)
    return _Cron(schedule.cron, schedule.timezone)
