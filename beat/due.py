"""When work of a schedule is due: pure decisions, ``now`` passed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from virtvault.models import Policy, Schedule

__all__ = ["Due", "between", "latest_due", "next_due", "schedules"]


@dataclass(frozen=True)
class Due:
    """One slot for one domain: the time the schedule names, when its work is due, and the end of
    its window. All aware, UTC."""

    slot: datetime
    at: datetime
    closes: datetime


def next_due(schedule: Schedule, key: str, after: datetime) -> Due:
    """The first that is due later than ``after``. ``key`` decides on the place in the spread."""
    raise NotImplementedError


def latest_due(schedule: Schedule, key: str, now: datetime) -> Due:
    """The last that is due at ``now`` or before."""
    raise NotImplementedError


def between(schedule: Schedule, key: str, start: datetime, end: datetime) -> Iterator[Due]:
    """All that are due from ``start`` on and before ``end``."""
    raise NotImplementedError


def schedules(policy: Policy) -> dict[str, Schedule]:
    """What a policy schedules, by :data:`virtvault.models.KINDS`."""
    raise NotImplementedError
