"""Which policies mean which domain: a pure decision with reasons."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtvault.models import DomainInfo, Policy, PolicyDocument

__all__ = ["Matching", "match"]


@dataclass(frozen=True)
class Matching:
    """The policies that hold for a domain, each with the repository it means; and why not others.

    ``repositories`` maps a policy's name to the repository's; ``shadowed`` those that mean the
    domain too, and do not hold, to why.
    """

    policies: tuple[Policy, ...] = ()
    repositories: dict[str, str] = field(default_factory=dict)
    shadowed: dict[str, str] = field(default_factory=dict)


def match(document: PolicyDocument, domain: DomainInfo, default: str) -> Matching:
    """Decide for one domain. ``default`` is its hypervisor's default repository."""
    raise NotImplementedError
