"""What beat knows of the fleet: the policies in force, and which hypervisor has which domain.

Every beat keeps it, the one that leads and those that stand by. Between two looks only what was
announced as changed is read again; the whole is compared once a minute.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from beat.due import next_due, schedules
from beat.entries import Entry
from beat.matching import Matching, PolicyMatcher
from virtvault import queues, schemas
from virtvault.errors import VirtvaultError
from virtvault.inventory import Inventories, Said
from virtvault.models import DomainInfo, Inventory, Policy, PolicyDocument, PolicyVersion, Schedule
from virtvault.whereabouts import MIGRATING, SHUT_OFF

__all__ = ["FleetView", "Place"]

log = logging.getLogger(__name__)

# Bytes of the policies' JSON in which a new version differs: its number and when it was applied.
HEAD = 100
# Seconds between two comparisons of all hypervisors, in case an announcement was lost.
COMPARE = 60.0
# Seconds of one tick for reading inventories: those of a whole fleet take seconds.
BUDGET = 0.25


@dataclass(frozen=True)
class Place:
    """A domain as one hypervisor has it. ``default`` is the repository meant where none is."""

    host: str
    info: DomainInfo
    default: str
    at: str

    @property
    def active(self) -> bool:
        return self.info.state not in (SHUT_OFF, MIGRATING)

    @property
    def migrating(self) -> bool:
        return self.info.state == MIGRATING


class FleetView:
    """Read with :meth:`look`; ``changed`` collects the uuids of domains to be planned anew."""

    def __init__(self, client: redis.Redis) -> None:
        self.version: PolicyVersion | None = None
        self.document = PolicyDocument()
        self.changed: dict[str, None] = {}
        self._client = client
        self._inventories = Inventories(client)
        self._head: bytes = b""
        self._policies: dict[str, Policy] = {}
        self._schedules: dict[str, dict[str, Schedule]] = {}
        self._matcher = PolicyMatcher(self.document)
        self._matched: dict[tuple[str, str], Matching] = {}
        self._places: dict[str, dict[str, Place]] = {}
        self._of_host: dict[str, dict[str, Place]] = {}
        self._unread: dict[str, Said] = {}
        self._read: dict[str, Inventory] = {}
        self._heard = b"0-0"
        self._compared: float | None = None

    # -- looking ------------------------------------------------------------------------------

    def look(self) -> None:
        """Take up what has changed; bounded, so that a large fleet takes several looks."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.getrange(queues.POLICIES_KEY, 0, HEAD)
            pipe.xread({queues.INVENTORY_STREAM: self._heard}, count=500)
            answer: Any = pipe.execute()
        head, heard = answer
        if head and head != self._head:
            self._read_policies(head)
        told = set()
        for _, entries in heard or ():
            self._heard = entries[-1][0]
            told = {fields[b"host"].decode() for _, fields in entries if b"host" in fields}
        if self._compared is None:
            last: Any = self._client.xrevrange(queues.INVENTORY_STREAM, count=1)
            self._heard = last[0][0] if last else b"0-0"
        if self._compared is None or time.monotonic() - self._compared >= COMPARE:
            self._unread |= self._inventories.look()
            self._compared = time.monotonic()
        elif told:
            self._unread |= {h: s for h in sorted(told) if (s := self._inventories.one(h))}
        self._read_inventories()

    def look_at_all(self) -> None:
        """Compare everything at the next look: Redis was flushed."""
        self._compared = None

    @property
    def complete(self) -> bool:
        """Whether policies and all inventories have been read."""
        return self.version is not None and self._compared is not None and not self._unread

    def enact(self, version: PolicyVersion) -> None:
        """Take these policies for those in force."""
        self.version, self.document = version, version.document or PolicyDocument()
        self._policies = {policy.name: policy for policy in self.document.policies}
        self._schedules = {policy.name: _known_here(policy) for policy in self.document.policies}
        self._matcher = PolicyMatcher(self.document)
        self._matched = {}
        self.plan_all()
        log.info("policies: version %d, %d of them", version.number, len(self._policies))

    def plan_all(self, more: Iterable[str] = ()) -> None:
        """Have all domains planned anew, and those in ``more``."""
        self.changed |= dict.fromkeys(self._places) | dict.fromkeys(more)

    # -- answers ------------------------------------------------------------------------------

    def policy(self, name: str) -> Policy | None:
        return self._policies.get(name)

    def schedule(self, entry: Entry) -> Schedule | None:
        """When an entry is due; None where the policy has no such kind of work (any more)."""
        return self._schedules.get(entry.policy, {}).get(entry.kind)

    def hosts(self, uuid: str) -> Iterable[str]:
        """The hypervisors that know a domain."""
        return self._places.get(uuid, {}).keys()

    def place(self, uuid: str, alive: frozenset[str] | None = None) -> Place | None:
        """Where a domain is; None where no hypervisor has it, or two run it.

        Where it is active, before where it is only defined: after a live migration the source
        keeps it so. A hypervisor that is gone (not in ``alive``) says no longer where a domain is
        that another one has active.
        """
        places = list(self._places.get(uuid, {}).values())
        active = [place for place in places if place.active]
        if alive is not None and len(active) > 1:
            active = [place for place in active if place.host in alive] or active
        if len(active) > 1:
            return None
        return max(active or places, key=_last_active, default=None)

    def torn(self, uuid: str) -> list[str]:
        """The hypervisors that have a domain active at the same time, where that is so."""
        active = [place.host for place in self._places.get(uuid, {}).values() if place.active]
        return sorted(active) if len(active) > 1 else []

    def matching(self, place: Place) -> Matching:
        """The policies that hold for a domain there."""
        key = (place.info.uuid, place.host)
        found = self._matched.get(key)
        if found is None:
            found = self._matched[key] = self._matcher.match(place.info, place.default)
        return found

    def alive(self, hosts: Collection[str]) -> frozenset[str]:
        """Those of some hypervisors that are heard of just now."""
        names = sorted(hosts)
        found: Any = self._client.mget([queues.host_key(host) for host in names]) if names else []
        return frozenset(host for host, said in zip(names, found, strict=True) if said)

    def wanted(self, uuid: str, alive: frozenset[str] | None = None) -> dict[Entry, Schedule]:
        """The entries that a domain shall have."""
        place = self.place(uuid, alive)
        if place is None:
            return {}
        return {
            Entry(policy.name, kind, uuid): schedule
            for policy in self.matching(place).policies
            for kind, schedule in self._schedules[policy.name].items()
        }

    # -- inside -------------------------------------------------------------------------------

    def _read_policies(self, head: bytes) -> None:
        raw: Any = self._client.get(queues.POLICIES_KEY)
        if not raw:
            return
        self._head = head
        try:
            version = schemas.load(PolicyVersion, json.loads(raw))
        except (VirtvaultError, ValueError) as error:
            # Those of before stay in force: better than none.
            log.error("the policies in Redis cannot be read and were not taken up: %s", error)
            return
        self.enact(version)

    def _read_inventories(self) -> None:
        began = time.monotonic()
        while self._unread and time.monotonic() - began < BUDGET:
            host, said = self._unread.popitem()
            inventory = said.inventory
            # Without one what was known stays: nobody says otherwise.
            if inventory is None or inventory is self._read.get(host):
                continue
            self._read[host] = inventory
            found = {
                info.uuid: Place(host, info, inventory.default, inventory.at)
                for info in inventory.domains
            }
            self._take(host, found)

    def _take(self, host: str, found: dict[str, Place]) -> None:
        before = self._of_host.get(host, {})
        for uuid in before.keys() - found.keys():
            del self._places[uuid][host]
            if not self._places[uuid]:
                del self._places[uuid]
            self._differs(uuid, host)
        for uuid, place in found.items():
            self._places.setdefault(uuid, {})[host] = place
            known = before.get(uuid)
            if known is None or (known.info, known.default) != (place.info, place.default):
                self._differs(uuid, host)
        self._of_host[host] = found

    def _differs(self, uuid: str, host: str) -> None:
        self._matched.pop((uuid, host), None)
        self.changed[uuid] = None


def _known_here(policy: Policy) -> dict[str, Schedule]:
    """What a policy schedules, without what this host cannot tell the times of.

    Its time zones may be older than those of the host where the policy was applied.
    """
    found = {}
    for kind, schedule in schedules(policy).items():
        try:
            next_due(schedule, "", datetime.now(UTC))
        except (ValueError, LookupError, OSError) as error:
            log.error("policy %s: no %s is scheduled from here: %s", policy.name, kind, error)
            continue
        found[kind] = schedule
    return found


def _last_active(place: Place) -> tuple[bool, str, str, str]:
    """Among hypervisors that do not run a domain the one that ran it last is meant."""
    return place.migrating, place.info.active, place.at, place.host
