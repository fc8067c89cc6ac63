"""Which hypervisor a domain is on, from what each says of it: pure.

A domain may be known on several: after a live migration its source keeps the definition, shut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from virtvault.errors import DomainBusy, NotReachable, UnknownDomain
from virtvault.models import DomainInfo

__all__ = [
    "MIGRATING",
    "SHUT_OFF",
    "UNKNOWN",
    "UNREACHABLE",
    "Place",
    "locate",
    "of_two_minds",
]

SHUT_OFF = "shut off"
# Paused by libvirt for a migration: here until it is there.
MIGRATING = "migrating"
# Of a domain whose hypervisor is gone, and of one whose libvirt does not say.
UNREACHABLE = "unreachable"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Place:
    """A hypervisor's last word on a domain, at ``seen``.

    ``certain``: it is so now. Else ``why`` is the sentence that says why that cannot be told, and
    ``alive`` whether its worker lives.
    """

    domain: DomainInfo
    seen: str
    alive: bool = True
    certain: bool = True
    why: str = ""

    @property
    def host(self) -> str:
        return self.domain.host

    @property
    def runs(self) -> bool:
        """Whether it is active there, and neither coming nor going."""
        return self.certain and self.domain.state not in (SHUT_OFF, MIGRATING)

    @property
    def active(self) -> str:
        """When it was active there last, empty where nobody has seen that."""
        return self.domain.active if self.domain.state == SHUT_OFF else self.seen


def of_two_minds(places: Sequence[Place]) -> bool:
    """Whether a domain seems to run twice: so it is for a moment where one has yet to tell."""
    running = [place.domain.uuid for place in places if place.runs]
    return len(running) > len(set(running))


def locate(asked: str, places: Sequence[Place]) -> DomainInfo:
    """The domain meant: where it runs, else where it ran last.

    :raises UnknownDomain: there is none, or it cannot be told which is meant.
    :raises DomainBusy: it is between two hypervisors.
    :raises NotReachable: its hypervisor is gone.
    """
    if not places:
        raise UnknownDomain(
            f"No hypervisor has a domain {asked!r}.", "`virtvault domains` lists them."
        )
    running = [place for place in places if place.runs]
    if len({place.domain.uuid for place in places}) > 1:
        raise _several(asked, places)
    if of_two_minds(places):
        raise UnknownDomain(
            f"Domain {asked!r} ({places[0].domain.uuid}) runs on {len(running)} hypervisors at "
            f"once: {_list(running)}. Where they share its disks, both are writing to them.",
            "Stop all but the right one at once (`virsh destroy`), then check its file systems.",
        )
    if running:
        return running[0].domain
    moving = [place for place in places if place.certain and place.domain.state == MIGRATING]
    if moving and len(places) > 1:
        raise DomainBusy(
            f"Domain {asked!r} is just being migrated between {_list(places)}.",
            "Ask again when that has ended.",
        )
    last = sorted(moving or places, key=lambda place: place.active)
    if len(last) > 1 and last[-1].active == last[-2].active:
        raise _several(asked, places)
    if not last[-1].alive:
        raise NotReachable(
            f"Domain {asked!r} is on hypervisor {last[-1].host}: {last[-1].why}",
            f"Start `virtvault worker` on {last[-1].host}; or start the domain elsewhere, and its "
            f"chain goes on there.",
        )
    return last[-1].domain


def _several(asked: str, places: Sequence[Place]) -> UnknownDomain:
    return UnknownDomain(
        f"Domain {asked!r} is on {len(places)} hypervisors.", f"Name one: {_list(places)}."
    )


def _list(places: Sequence[Place]) -> str:
    return ", ".join(f"{place.host}/{place.domain.name}" for place in places)
