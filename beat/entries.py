"""Entries and their slots: names, ids and times. Pure; instants are seconds since the epoch.

An entry is one kind of work of one policy for one domain, ``<policy>/<kind>/<uuid>``. The schedule
gives it slots; the work of one slot may take several attempts. A task's id is made of all that,
so whoever dispatches an attempt makes the same task of it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

from beat import due
from virtvault import queues
from virtvault.models import Policy, Schedule, SlotRecord
from virtvault.moments import written
from virtvault.runs import RunRecord

__all__ = [
    "Entry",
    "Origin",
    "Slot",
    "Work",
    "backoff",
    "first_at",
    "instant",
    "moment",
    "signature",
]

# The task of each kind of work.
TASKS = {
    "backup": queues.BACKUP,
    "verify": queues.VERIFY,
    "boot_test": queues.VERIFY,
    "prune": queues.PRUNE,
}
_NAMESPACE = uuid.UUID("6e8d1c4a-9d0b-5b0e-8f50-6f0d5f4b6c11")
# Seconds until a failed attempt is made again: doubled each time up to the second.
RETRY_FIRST, RETRY_LAST = 60, 1800
# Seconds that the first backups of new domains are spread over at least.
FIRST_SPREAD = 900
# So many missed slots are counted one by one; after weeks without beat "1000" says enough.
COUNTED = 1000


class Entry(NamedTuple):
    """Names one entry; its text is its name in Redis."""

    policy: str
    kind: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.policy}/{self.kind}/{self.uuid}"

    @classmethod
    def parse(cls, name: str) -> Entry:
        return cls(*name.split("/"))


class Origin(NamedTuple):
    """The slot that a run fills, as :attr:`virtvault.runs.RunRecord.origin` has it."""

    entry: Entry
    slot: float
    attempt: int

    def __str__(self) -> str:
        return f"{self.entry}/{moment(self.slot)}/{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> Origin:
        """:raises ValueError: it is none."""
        name, slot, attempt = text.rsplit("/", 2)
        policy, kind, uuid_ = name.split("/")
        return cls(Entry(policy, kind, uuid_), instant(slot), int(attempt))

    @property
    def task_id(self) -> str:
        return str(uuid.uuid5(_NAMESPACE, str(self)))


class Slot(NamedTuple):
    """One slot of an entry: when it is, when its work is due, and when its window closes."""

    slot: float
    at: float
    closes: float


@dataclass(frozen=True)
class Work:
    """The work of one slot, waiting or (with ``task_id``) in flight.

    ``attempt`` counts from 1 and does not begin before ``begin``. ``deadline`` orders what waits:
    when the newest good point passes its RPO, else when the work was due. ``why`` is how the last
    attempt failed, ``busy`` that it found somebody else at work on the domain, ``lost`` that it was
    dispatched once, before a flush of Redis. ``request`` is JSON.
    """

    entry: str
    slot: float
    at: float
    closes: float
    attempt: int = 1
    begin: float = 0.0
    deadline: float = 0.0
    why: str = ""
    busy: bool = False
    lost: bool = False
    task_id: str = ""
    host: str = ""
    domain: str = ""
    repository: str = ""
    since: float = 0.0
    request: str = ""

    @property
    def origin(self) -> Origin:
        return Origin(Entry.parse(self.entry), self.slot, self.attempt)

    @property
    def run(self) -> RunRecord:
        """The run record of work in flight."""
        return RunRecord(
            task_id=self.task_id,
            task=TASKS[Entry.parse(self.entry).kind],
            queue=queues.host_queue(self.host),
            host=self.host,
            request=json.loads(self.request),
            created=self.since,
            origin=str(self.origin),
        )

    def again(self, begin: float, why: str, busy: bool) -> Work:
        """The next attempt, after this one failed."""
        return replace(self, attempt=self.attempt + 1, begin=begin, why=why, busy=busy, lost=False)

    def over(self, now: float, why: str) -> SlotRecord:
        """What to tell of work that waited and is not begun any more.

        ``missed`` if nothing was tried, else how the last attempt failed; a domain that others
        were at work on all the time was skipped.
        """
        if self.lost:
            return self.record("failed", now, f"Its task was lost with Redis' memory. {why}")
        if self.attempt == 1:
            return self.record("missed", now, why)
        if self.busy:
            return replace(self, task_id="", host="").record("skipped", now, f"{self.why} {why}")
        return replace(self, attempt=self.attempt - 1).record("failed", now, f"{self.why} {why}")

    def dump(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def load(cls, text: str | bytes) -> Work:
        return cls(**json.loads(text))

    def record(self, state: str, now: float, reason: str = "") -> SlotRecord:
        """What has become of the slot."""
        entry = Entry.parse(self.entry)
        return SlotRecord(
            policy=entry.policy,
            uuid=entry.uuid,
            kind=entry.kind,
            slot=moment(self.slot),
            state=state,
            at=moment(now),
            attempt=self.attempt,
            task_id=self.task_id,
            host=self.host,
            domain=self.domain,
            repository=self.repository,
            reason=reason,
        )


def moment(seconds: float) -> str:
    """UTC to the millisecond, as models carry it."""
    return written(datetime.fromtimestamp(seconds, UTC))


def instant(text: str) -> float:
    """The seconds of such a text.

    :raises ValueError: it is none.
    """
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def signature(schedule: Schedule) -> str:
    """Equal where the times are."""
    return hashlib.sha256(repr(schedule).encode()).hexdigest()[:12]


def latest(schedule: Schedule, key: str, now: float) -> Slot:
    """The last slot whose work is due at ``now``."""
    return _slot(due.latest_due(schedule, key, _aware(now)))


def upcoming(schedule: Schedule, key: str, after: float) -> Slot:
    """The first slot whose work is due later than ``after``."""
    return _slot(due.next_due(schedule, key, _aware(after)))


def following(schedule: Schedule, key: str, slot: float) -> Slot:
    """The first slot later than ``slot``, wherever in its spread that one was due."""
    return upcoming(schedule, key, slot + due.place(schedule, key))


def missed(schedule: Schedule, key: str, since: float, until: float) -> tuple[int, float]:
    """How many slots were due from ``since`` on and before ``until``, and the last of them.

    Not more than ``COUNTED`` are counted.
    """
    found: Iterator[due.Due] = due.between(schedule, key, _aware(since), _aware(until))
    count = sum(1 for _ in islice(found, COUNTED))
    if not count:
        return 0, 0.0
    return count, latest(schedule, key, until - 0.001).slot


def first_at(schedule: Schedule, key: str, now: float) -> float:
    """When an entry that never ran backs up first: soon, each domain at its own place.

    Within the schedule's spread from now, or a quarter of an hour where that is longer; and not
    later than the schedule itself says.
    """
    spread = due.window(schedule) // 2 if schedule.spread < 0 else schedule.spread
    soon = Schedule(every=due.window(schedule), spread=max(spread, FIRST_SPREAD))
    return min(float(int(now) + 1 + due.place(soon, key)), upcoming(schedule, key, now).at)


def backoff(work: Work) -> float:
    """Seconds until the next attempt, up to a quarter longer by a hash: not all at once."""
    pause = float(min(RETRY_FIRST << min(work.attempt - 1, 10), RETRY_LAST))
    spread = hashlib.sha256(str(work.origin).encode()).digest()[0] / 1024
    return pause * (1 + spread)


def deadline(policy: Policy, kind: str, at: float, good: float) -> float:
    """When the newest good point passes its RPO, or ``at`` where that cannot be told."""
    return good + policy.rpo if kind == "backup" and policy.rpo and good else at


def _aware(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _slot(found: due.Due) -> Slot:
    return Slot(found.slot.timestamp(), found.at.timestamp(), found.closes.timestamp())
