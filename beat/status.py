"""How fresh the fleet is: a pure computation over what the catalog and Redis say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from beat.matching import Matching
from tasks.catalog import Newest
from virtvault.models import (
    DomainInfo,
    DomainStatus,
    FleetStatus,
    FleetTotals,
    HostInfo,
    Policy,
    RunInfo,
)
from virtvault.moments import written

__all__ = ["Facts", "OURS", "fleet_status", "one_of"]

# Domains that a boot test starts.
OURS = "virtvault-verify-"
# Seconds that clocks of hypervisors may differ from central's before an age means nothing.
SKEW = 300.0
# The worst first: what holds of a domain that several policies mean.
WORST = ("never", "late", "fresh", "no rpo", "unprotected")


@dataclass(frozen=True)
class Facts:
    """All that a status is made of, as it was at ``now``.

    ``hosts`` are those that were ever heard of; ``alive`` in them is what Redis says. The ids of
    their ``repositories`` are by hypervisor and name, ``defaults`` are those names. ``last`` is
    each domain's newest ended backup, ``running`` the task at work on it, both by uuid. ``match``
    says which policies mean a domain whose hypervisor has this default repository.
    """

    now: datetime
    domains: Sequence[DomainInfo]
    hosts: Mapping[str, HostInfo]
    repositories: Mapping[str, Mapping[str, str]]
    defaults: Mapping[str, str]
    newest: Iterable[Newest]
    last: Mapping[str, RunInfo]
    match: Callable[[DomainInfo, str], Matching]
    running: Mapping[str, str] = field(default_factory=dict)
    policy_version: int = 0
    beat: str = ""


def fleet_status(facts: Facts) -> FleetStatus:
    """The status of every domain, and the fleet in numbers."""
    points: dict[str, list[Newest]] = {}
    for found in facts.newest:
        points.setdefault(found.uuid, []).append(found)
    domains = tuple(
        _domain(facts, domain, points.get(domain.uuid, []))
        for domain in facts.domains
        # Of one that is nowhere, and has no point either, there is nothing to be said.
        if not domain.name.startswith(OURS) and (domain.state != "absent" or domain.uuid in points)
    )
    return FleetStatus(
        at=written(facts.now),
        totals=_totals(facts, domains),
        domains=domains,
        hosts=tuple(facts.hosts[host] for host in sorted(facts.hosts)),
        policy_version=facts.policy_version,
        beat=facts.beat,
    )


def one_of(status: FleetStatus, domain: str) -> FleetStatus:
    """The same with those domains alone that ``domain`` (name, uuid, ``host/name``) means."""
    host, _, name = domain.rpartition("/")
    found = [d for d in status.domains if name in (d.domain, d.uuid) and host in ("", d.host)]
    there = [d for d in found if d.state != "absent"]
    return replace(status, domains=tuple(there or found))


@dataclass(frozen=True)
class _Held:
    """How one policy is held for a domain."""

    policy: Policy
    health: str
    point: Newest | None = None
    age: float = -1.0
    ahead: float = 0.0

    @property
    def rank(self) -> tuple[int, float, int]:
        """The worst is the least: by health, then how far past, then the strictest."""
        return WORST.index(self.health), self.policy.rpo - self.age, self.policy.rpo


def _domain(facts: Facts, domain: DomainInfo, points: Sequence[Newest]) -> DomainStatus:
    absent = domain.state == "absent"
    default = facts.defaults.get(domain.host, "")
    known = facts.repositories.get(domain.host, {})
    # A domain that is nowhere can be backed up by nobody: no policy means it.
    matching = Matching() if absent else facts.match(domain, default)
    held = [_hold(facts, matching, policy, known, points) for policy in matching.policies]
    worst = min(held, key=lambda one: one.rank, default=None)
    newest = worst.point if worst else _newest(points)
    age = worst.age if worst else _age(facts, newest)
    error, mend, error_at = _error(facts, domain, worst)
    return DomainStatus(
        domain=domain.name,
        uuid=domain.uuid,
        host=domain.host,
        state=domain.state if absent or _alive(facts, domain.host) else "unreachable",
        health=worst.health if worst else "unprotected",
        labels=dict(domain.labels),
        policies=tuple(policy.name for policy in matching.policies),
        rpo=worst.policy.rpo if worst else 0,
        newest=newest.point if newest else "",
        instant=newest.instant if newest else "",
        age=max(age, 0.0) if newest else -1.0,
        chain=newest.chain if newest else 0,
        points=sum(point.points for point in points),
        stored=sum(point.stored for point in points),
        running=facts.running.get(domain.uuid, ""),
        error=error,
        mend=mend,
        error_at=error_at,
    )


def _hold(
    facts: Facts,
    matching: Matching,
    policy: Policy,
    known: Mapping[str, str],
    points: Sequence[Newest],
) -> _Held:
    """Only points in the policy's own repository count: others are no copy where it wants one."""
    name = matching.repositories.get(policy.name, policy.repository)
    # By id: repositories of one name on two hypervisors may be two.
    there = known.get(name, "")
    newest = _newest(
        p for p in points if (p.repository_id == there if there else p.repository == name)
    )
    if newest is None:
        return _Held(policy, "never")
    age = _age(facts, newest)
    if age < -SKEW:
        # Its age cannot be told, so it is not taken for fresh.
        return _Held(policy, "late" if policy.rpo else "no rpo", newest, 0.0, -age)
    age = max(age, 0.0)
    health = "no rpo" if not policy.rpo else "late" if age > policy.rpo else "fresh"
    return _Held(policy, health, newest, age)


def _newest(points: Iterable[Newest]) -> Newest | None:
    """The newest good one; where none is good, ``point`` is empty."""
    return max((p for p in points if p.point), key=lambda p: p.instant, default=None)


def _error(facts: Facts, domain: DomainInfo, worst: _Held | None) -> tuple[str, str, str]:
    """What is wrong with its backups, the mend, and since when that is known."""
    run = facts.last.get(domain.uuid)
    if run is not None and run.state == "failed":
        return run.error, run.mend, run.finished
    if worst is not None and worst.ahead and worst.point is not None:
        return (
            f"Its newest point {worst.point.point} is dated {worst.ahead:.0f} s ahead of the "
            "central tier's clock: its age cannot be told, so it does not count as fresh.",
            f"Set the clocks of {worst.point.host} and of the central tier, then back it up.",
            written(facts.now),
        )
    return "", "", ""


def _totals(facts: Facts, domains: Sequence[DomainStatus]) -> FleetTotals:
    there = [domain for domain in domains if domain.state != "absent"]
    health = Counter(domain.health for domain in there)
    return FleetTotals(
        hosts=len(facts.hosts),
        hosts_gone=sum(not host.alive for host in facts.hosts.values()),
        domains=len(there),
        fresh=health["fresh"],
        late=health["late"],
        never=health["never"],
        no_rpo=health["no rpo"],
        unprotected=health["unprotected"],
        unreachable=sum(domain.state == "unreachable" for domain in there),
        failing=sum(_failing(facts, domain) for domain in there),
        running=sum(bool(domain.running) for domain in there),
        points=sum(domain.points for domain in domains),
        stored=sum(domain.stored for domain in domains),
    )


def _failing(facts: Facts, domain: DomainStatus) -> bool:
    run = facts.last.get(domain.uuid)
    return run is not None and run.state == "failed"


def _alive(facts: Facts, host: str) -> bool:
    return host in facts.hosts and facts.hosts[host].alive


def _age(facts: Facts, point: Newest | None) -> float:
    if point is None:
        return -1.0
    return (facts.now - datetime.fromisoformat(point.instant)).total_seconds()
