"""Which policies mean which domain: a pure decision with reasons."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from virtvault.models import DomainInfo, Policy, PolicyDocument, Selector

__all__ = ["Matching", "PolicyMatcher", "match"]

Test = Callable[[str], bool]


@dataclass(frozen=True)
class Matching:
    """The policies that hold for a domain, each with the repository it means; and why not others.

    ``repositories`` maps a policy's name to the repository's; ``shadowed`` those that mean the
    domain too, and do not hold, to why.
    """

    policies: tuple[Policy, ...] = ()
    repositories: dict[str, str] = field(default_factory=dict)
    shadowed: dict[str, str] = field(default_factory=dict)


class PolicyMatcher:
    """A document whose patterns are compiled once: 50 000 domains against 50 policies in seconds.

    Policies that are not enabled mean no domain, and keep none from others.
    """

    def __init__(self, document: PolicyDocument) -> None:
        self._entries = [
            (policy, _Fits(policy.select), _Fits(policy.exclude))
            for policy in document.policies
            if policy.enabled
        ]

    def match(self, domain: DomainInfo, default: str) -> Matching:
        """Decide for one domain. ``default`` is its hypervisor's default repository.

        Of the policies that mean the domain and one repository the one of highest priority holds,
        of several such the first. Those that hold are given in the document's order.
        """
        meant = [
            policy
            for policy, select, exclude in self._entries
            if select(domain) and not exclude(domain)
        ]
        holding: dict[str, Policy] = {}
        for policy in meant:
            holder = holding.setdefault(policy.repository or default, policy)
            if policy.priority > holder.priority:
                holding[policy.repository or default] = policy
        repositories, shadowed = {}, {}
        for policy in meant:
            repository = policy.repository or default
            holder = holding[repository]
            if holder is policy:
                repositories[policy.name] = repository
            else:
                shadowed[policy.name] = _why(policy, holder, repository)
        holds = tuple(policy for policy in meant if policy.name in repositories)
        return Matching(holds, repositories, shadowed)


def match(document: PolicyDocument, domain: DomainInfo, default: str) -> Matching:
    """Decide for one domain; for many make one :class:`PolicyMatcher`."""
    return PolicyMatcher(document).match(domain, default)


class _Fits:
    """Whether a domain fits a selector."""

    def __init__(self, selector: Selector) -> None:
        self._uuids = frozenset(selector.uuids)
        self._labels = [(name, _one_of([value])) for name, value in selector.labels.items()]
        self._names = _one_of(selector.names)
        # A fleet has far fewer hypervisors than domains.
        self._hosts = lru_cache(maxsize=4096)(_one_of(selector.hosts))
        self._any = selector != Selector()
        self._by_host, self._by_name = bool(selector.hosts), bool(selector.names)

    def __call__(self, domain: DomainInfo) -> bool:
        return (
            self._any
            and (not self._uuids or domain.uuid in self._uuids)
            and (not self._by_host or self._hosts(domain.host))
            and (not self._by_name or self._names(domain.name))
            and all(
                name in domain.labels and fits(domain.labels[name]) for name, fits in self._labels
            )
        )


def _one_of(patterns: Iterable[str]) -> Test:
    """Whether a text fits one of some shell patterns; upper and lower case differ."""
    plain = frozenset(p for p in patterns if not re.search(r"[*?[]", p))
    shell = [p for p in patterns if p not in plain]
    if "*" in shell:
        return lambda _: True
    if not shell:
        return plain.__contains__
    fits = re.compile("|".join(map(fnmatch.translate, shell))).match
    return lambda text: text in plain or fits(text) is not None


def _why(policy: Policy, holder: Policy, repository: str) -> str:
    where = f"repository {repository}" if repository else "its host's default repository"
    if holder.priority > policy.priority:
        return (
            f"policy {holder.name} holds for {where}: its priority {holder.priority} is above "
            f"{policy.priority}"
        )
    return (
        f"policy {holder.name} holds for {where}: of priority {policy.priority} too, and it comes "
        "first"
    )
