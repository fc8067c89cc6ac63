"""What waiting work may begin, and why other does not. Pure decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from beat.entries import Entry, Work, moment
from beat.fleet_view import FleetView, Place
from virtvault.models import Limits, Policy, SlotRecord

__all__ = ["Begin", "Drop", "End", "Hold", "Room", "decide"]


@dataclass(frozen=True)
class Begin:
    """It begins there."""

    place: Place
    repository: str
    policy: Policy


@dataclass(frozen=True)
class Hold:
    """It waits, for ``why``."""

    why: str


@dataclass(frozen=True)
class End:
    """It is not tried (again); what to tell of its slot."""

    record: SlotRecord


@dataclass(frozen=True)
class Drop:
    """Nobody wants it any more: its policy or its domain is gone."""


class Room:
    """Counts what is in flight against the limits of the document and of each policy."""

    def __init__(self, overall: Limits, flights: Iterable[Work]) -> None:
        self._overall = overall
        self._counts: Counter[tuple[str, str, str]] = Counter()
        # Domains with a backup in flight: a second one would find the domain busy.
        self._backups: set[str] = set()
        for work in flights:
            self.take(work)

    def take(self, work: Work) -> None:
        """Count one more."""
        entry = Entry.parse(work.entry)
        for scope in ("", entry.policy):
            self._counts[scope, "host", work.host] += 1
            self._counts[scope, "repository", work.repository] += 1
            self._counts[scope, "all", ""] += 1
        if entry.kind == "backup":
            self._backups.add(entry.uuid)

    def why_not(self, entry: Entry, policy: Policy, host: str, repository: str) -> str:
        """Why one more of a policy cannot begin; empty where it can."""
        if entry.kind == "backup" and entry.uuid in self._backups:
            return "another policy's backup of the domain was at work"
        for scope, limits in (("", self._overall), (policy.name, policy.limits)):
            for kind, name, limit in (
                ("all", "", limits.total),
                ("host", host, limits.per_host),
                ("repository", repository, limits.per_repository),
            ):
                if limit and self._counts[scope, kind, name] >= limit:
                    of = f"policy {scope}'s limit" if scope else "the limit"
                    where = f" on {kind} {name}" if name else ""
                    return f"{of} of {limit} at a time{where} was reached"
        return ""


def decide(
    work: Work, now: float, view: FleetView, alive: frozenset[str], room: Room
) -> Begin | Hold | End | Drop:
    """What becomes of waiting work now. ``alive`` are the hypervisors that are heard of."""
    entry = Entry.parse(work.entry)
    policy = view.policy(entry.policy)
    if policy is None or view.schedule(entry) is None:
        return Drop()
    place = view.place(entry.uuid, alive)
    if place is None:
        torn = view.torn(entry.uuid)
        if not torn:
            return Drop()
        repository, why = "", f"{' and '.join(torn)} both say that they run the domain"
    else:
        repositories = view.matching(place).repositories
        if policy.name not in repositories:
            return Drop()
        repository = repositories[policy.name]
        if work.begin > now:
            why = f"the next attempt is due at {moment(work.begin)}"
        elif place.host not in alive:
            why = f"hypervisor {place.host} was not heard of"
        elif place.migrating:
            why = f"the domain was just being migrated ({place.host})"
        else:
            why = room.why_not(entry, policy, place.host, repository)
    again = work.attempt > 1 and not work.lost
    if now >= work.closes and (again or policy.late == "skip"):
        return End(_over(work, now, why))
    return Begin(place, repository, policy) if place and not why else Hold(why)


def _over(work: Work, now: float, why: str) -> SlotRecord:
    """Its window has passed before it could begin."""
    until = f"The window ended at {moment(work.closes)}"
    if work.attempt > 1 or work.lost:
        return work.over(now, f"{until}.")
    return work.record("skipped", now, f"{until}; {why or 'beat came to it later'}.")
