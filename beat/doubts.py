"""What of policies looks unintended, or cannot hold: a sentence each, with the numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice, pairwise

from beat import due
from beat.matching import Matching
from virtvault.models import DomainInfo, Inventory, Policy, PolicyDocument, Schedule

__all__ = ["doubts"]

# How far ahead the longest time between two runs is looked for, in days, and slots at most.
AHEAD, SLOTS = 62, 3000
UNITS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}

Matched = Sequence[tuple[DomainInfo, Matching]]


def doubts(
    document: PolicyDocument,
    matched: Matched,
    inventories: Mapping[str, Inventory],
    seconds: Mapping[str, float],
    now: datetime,
) -> list[str]:
    """What an operator should know before these policies are in force; by policies."""
    holding: dict[str, list[tuple[DomainInfo, str]]] = defaultdict(list)
    shadowed: Counter[str] = Counter()
    for domain, found in matched:
        shadowed.update(found.shadowed.keys())
        for name, repository in found.repositories.items():
            holding[name].append((domain, repository))
    said: list[str] = []
    for policy in document.policies:
        if policy.enabled:
            domains = [domain for domain, _ in holding[policy.name]]
            said += _meaning(policy, len(domains), shadowed[policy.name])
            said += _repositories(policy, holding[policy.name], inventories)
            said += _disks(policy, domains)
            said += _rpo(policy, now)
            said += _window(policy, document, domains, seconds)
    return said


def _meaning(policy: Policy, holding: int, shadowed: int) -> Iterator[str]:
    if not holding and shadowed:
        yield f"policy {policy.name} holds for none of the {shadowed} domains it means: others do"
    elif not holding:
        yield f"policy {policy.name} means no domain that there is"


def _repositories(
    policy: Policy, holding: Sequence[tuple[DomainInfo, str]], inventories: Mapping[str, Inventory]
) -> Iterator[str]:
    for (host, name), count in sorted(Counter((d.host, r) for d, r in holding).items()):
        inventory = inventories.get(host)
        known = {one.name: one for one in inventory.repositories} if inventory else {}
        backups = f"the backups of {count} domains there will fail"
        if inventory is None:
            yield (f"policy {policy.name}: hypervisor {host} has not told of its repositories yet")
        elif not name:
            yield (
                f"policy {policy.name} names no repository and hypervisor {host} has no default: "
                f"{backups}; set repository here or default_repository there"
            )
        elif name not in known:
            yield (
                f"policy {policy.name}: hypervisor {host} has no repository {name}: {backups}; "
                f"it has {', '.join(sorted(known)) or 'none'}"
            )
        elif known[name].why:
            yield f"policy {policy.name}: {host} cannot use repository {name}: {known[name].why}"


def _disks(policy: Policy, domains: Sequence[DomainInfo]) -> Iterator[str]:
    for target in policy.disks:
        # One that tells no disks at all is not known well enough.
        lacking = [d.name for d in domains if d.targets and target not in d.targets]
        if lacking:
            yield (
                f"policy {policy.name} names disk {target}, which {len(lacking)} of its "
                f"{len(domains)} domains do not have, such as {lacking[0]}: their backups will fail"
            )


def _rpo(policy: Policy, now: datetime) -> Iterator[str]:
    between = _longest(policy.schedule, now)
    if policy.rpo and policy.rpo <= between:
        yield (
            f"policy {policy.name}: an rpo of {_span(policy.rpo)} cannot hold with up to "
            f"{_span(between)} between its runs"
        )


def _window(
    policy: Policy,
    document: PolicyDocument,
    domains: Sequence[DomainInfo],
    seconds: Mapping[str, float],
) -> Iterator[str]:
    """Where the last backups took longer than the window has room for at their limits."""
    window = due.window(policy.schedule)
    late = "run late" if policy.late == "run" else "be skipped"
    by_host: dict[str, float] = defaultdict(float)
    for domain in domains:
        by_host[domain.host] += seconds.get(domain.uuid, 0.0)
    places = [(f"on {host}", took, "per_host") for host, took in sorted(by_host.items())]
    for where, took, limit in [*places, ("in all", sum(by_host.values()), "total")]:
        given = [getattr(limits, limit) for limits in (policy.limits, document.limits)]
        at_a_time = min((count for count in given if count), default=0)
        if at_a_time and took / at_a_time > window:
            yield (
                f"policy {policy.name}: its last backups {where} took {_span(round(took))}, "
                f"{at_a_time} at a time are allowed, and the window is {_span(window)}: some will "
                f"{late}"
            )


def _longest(schedule: Schedule, now: datetime) -> int:
    """The longest time between two slots in the next weeks, in seconds."""
    if schedule.every:
        return schedule.every
    at_once = replace(schedule, window=due.window(schedule), spread=0)
    slots = due.between(at_once, "", now, now + timedelta(days=AHEAD))
    first = due.latest_due(at_once, "", now)
    times = [first.slot, *(found.slot for found in islice(slots, SLOTS))]
    if len(times) < 3:  # comes rarely: some more of it
        while len(times) < 4:
            times.append(due.next_due(at_once, "", times[-1]).slot)
    return max(int((b - a).total_seconds()) for a, b in pairwise(times))


def _span(seconds: int) -> str:
    """``1d2h``, the two largest units of it."""
    parts = []
    for unit, size in UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"
