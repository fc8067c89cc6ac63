"""What policies would do: which domains they mean, what they would run, what they would keep.

Pure: what is known of the fleet is given, and ``now``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from beat import due
from beat.doubts import doubts
from beat.entries import moment
from beat.matching import Matching, PolicyMatcher
from virtvault.models import (
    KINDS,
    DomainInfo,
    Inventory,
    MatchedDomain,
    PlannedRun,
    Policy,
    PolicyDocument,
    Preview,
    Schedule,
)
from workers import retention
from workers.retention import Candidate

__all__ = ["RETAINED", "Fleet", "preview"]

HOUR = 3600
# Domains whose points are looked at: in a larger fleet that takes too long for an answer.
RETAINED = 300


@dataclass(frozen=True)
class Fleet:
    """What is known of the fleet. ``domains`` are those that some hypervisor has.

    ``seconds`` are those that each domain's last backup took, by uuid. ``points`` gives a domain's
    points in a repository (uuid, the repository's id, its name), as retention looks at them.
    """

    domains: Sequence[DomainInfo]
    inventories: Mapping[str, Inventory]
    seconds: Mapping[str, float] = field(default_factory=dict)
    points: Callable[[str, str, str], Sequence[Candidate]] = lambda *_: ()


def preview(
    document: PolicyDocument,
    fleet: Fleet,
    now: datetime,
    hours: int,
    limit: int,
    in_force: PolicyDocument | None = None,
) -> Preview:
    """Look ahead ``hours`` from ``now`` on.

    :param limit: so many runs and domains at most are listed; all are counted.
    :param in_force: the policies that these would take the place of, where they differ.
    """
    matched = _matched(document, fleet)
    before = matched if in_force is None else _matched(in_force, fleet)
    ahead = _Ahead(document, matched, now.astimezone(UTC), hours)
    protected = [(domain, found) for domain, found in matched if found.policies]
    listed = protected[:limit]
    looked_at = len(listed) <= RETAINED
    warnings = doubts(document, matched, fleet.inventories, fleet.seconds, now)
    if not looked_at:
        warnings.append(
            f"what retention keeps is not shown for {len(listed)} domains, more than {RETAINED}: "
            "ask for one of them"
        )
    changes = [
        (f"{domain.host}/{domain.name}", bool(old.policies), bool(new.policies))
        for (domain, old), (_, new) in zip(before, matched, strict=True)
    ]
    return Preview(
        at=moment(now.timestamp()),
        hours=hours,
        domains=tuple(
            _domain(domain, found, fleet, now if looked_at else None) for domain, found in listed
        ),
        unprotected=tuple(name for name, _, new in changes if not new),
        runs=tuple(ahead.first(limit)),
        total_runs=sum(map(sum, ahead.per_hour.values())),
        warnings=tuple(warnings),
        per_hour={kind: tuple(counts) for kind, counts in ahead.per_hour.items()},
        protected=len(protected),
        gains=tuple(name for name, old, new in changes if new and not old),
        loses=tuple(name for name, old, new in changes if old and not new),
    )


def _matched(document: PolicyDocument, fleet: Fleet) -> list[tuple[DomainInfo, Matching]]:
    matcher = PolicyMatcher(document)
    defaults = {host: inventory.default for host, inventory in fleet.inventories.items()}
    return [
        (domain, matcher.match(domain, defaults.get(domain.host, ""))) for domain in fleet.domains
    ]


class _Ahead:
    """The runs that come."""

    def __init__(
        self,
        document: PolicyDocument,
        matched: Sequence[tuple[DomainInfo, Matching]],
        now: datetime,
        hours: int,
    ) -> None:
        self._schedules = {policy.name: due.schedules(policy) for policy in document.policies}
        self._matched = matched
        self._start = now.timestamp()
        self._hours = hours
        self._slots = cache(self._slots_of)
        # Once: asked twice, and a fleet has many.
        self._entries = list(self._all())
        self.per_hour = {kind: [0] * hours for kind in KINDS}
        for _, _, kind, times in self._entries:
            for hour, count in self._counted(times):
                self.per_hour[kind][hour] += count
        self.per_hour = {kind: counts for kind, counts in self.per_hour.items() if any(counts)}

    def first(self, limit: int) -> Iterator[PlannedRun]:
        """The first ``limit`` in time order."""
        # Of no later hour than is needed: all of a large fleet's runs are too many to sort.
        until, count = 0, 0
        while until < self._hours and count < limit:
            count += sum(counts[until] for counts in self.per_hour.values())
            until += 1
        end = self._start + until * HOUR
        found = [
            (at, KINDS.index(kind), domain.name, domain.uuid, policy.name, slot)
            for domain, policy, kind, times in self._entries
            for slot, at in times.until(end)
        ]
        where = {domain.uuid: (domain, matching) for domain, matching in self._matched}
        for at, kind_, name, uuid, policy_, slot in sorted(found)[:limit]:
            domain, matching = where[uuid]
            repository = matching.repositories[policy_]
            yield PlannedRun(
                moment(at), moment(slot), KINDS[kind_], policy_, name, uuid, domain.host, repository
            )

    def _all(self) -> Iterator[tuple[DomainInfo, Policy, str, _Times]]:
        for domain, matching in self._matched:
            for policy in matching.policies:
                for kind, schedule in self._schedules[policy.name].items():
                    place = due.place(schedule, domain.uuid)
                    yield domain, policy, kind, self._times(schedule, place)

    def _times(self, schedule: Schedule, place: int) -> _Times:
        slots = self._slots(schedule)
        first = bisect_left(slots, self._start - place)
        last = bisect_left(slots, self._start - place + self._hours * HOUR)
        return _Times(slots, first, last, place)

    def _slots_of(self, schedule: Schedule) -> list[float]:
        """All slots whose work may be due in the time we look at, wherever in their spread."""
        at_once = replace(schedule, window=due.window(schedule), spread=0)
        start = datetime.fromtimestamp(self._start, UTC)
        end = start + timedelta(hours=self._hours)
        start -= timedelta(seconds=due.spread(schedule))
        return [found.slot.timestamp() for found in due.between(at_once, "", start, end)]

    def _counted(self, times: _Times) -> Iterator[tuple[int, int]]:
        if times.last - times.first <= self._hours:
            for _, at in times.until(float("inf")):
                yield int((at - self._start) // HOUR), 1
            return
        before = times.first
        for hour in range(self._hours):
            end = self._start - times.place + (hour + 1) * HOUR
            after = bisect_left(times.slots, end, before, times.last)
            yield hour, after - before
            before = after


@dataclass(frozen=True)
class _Times:
    """The slots ``first`` to before ``last``, each with the work due ``place`` seconds later."""

    slots: Sequence[float]
    first: int
    last: int
    place: int

    def until(self, end: float) -> Iterator[tuple[float, float]]:
        for slot in self.slots[self.first : self.last]:
            if slot + self.place >= end:
                return
            yield slot, slot + self.place


def _domain(
    domain: DomainInfo, matching: Matching, fleet: Fleet, now: datetime | None
) -> MatchedDomain:
    kept: dict[str, tuple[str, ...]] = {}
    removed: dict[str, tuple[str, ...]] = {}
    for policy in matching.policies if now is not None else ():
        assert now is not None
        name = matching.repositories[policy.name]
        points = fleet.points(domain.uuid, _repository_id(fleet, domain.host, name), name)
        for id_, decision in retention.decide(points, policy.retention, now).items():
            (kept if decision.keep else removed)[id_] = decision.reasons
    return MatchedDomain(
        domain=domain.name,
        uuid=domain.uuid,
        host=domain.host,
        policies=tuple(policy.name for policy in matching.policies),
        shadowed=matching.shadowed,
        kept=kept,
        removed=removed,
    )


def _repository_id(fleet: Fleet, host: str, name: str) -> str:
    inventory = fleet.inventories.get(host)
    known = inventory.repositories if inventory else ()
    return next((one.id for one in known if one.name == name), "")
