"""What hypervisors said of themselves, read for the whole fleet at once.

A hypervisor writes two keys: a small one that expires with its heartbeat, and its inventory, which
stays. A reader that is kept fetches again only the inventories that have changed since.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import redis

from virtvault import queues, runs, schemas
from virtvault.errors import InvalidRequest
from virtvault.models import DomainInfo, HostInfo, Inventory
from virtvault.whereabouts import UNKNOWN, UNREACHABLE

__all__ = ["Inventories", "Said"]

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Text:
    """An inventory as it came, read when it is needed. ``at`` is that of the sign of life then."""

    def __init__(self, host: str, at: str, raw: bytes) -> None:
        self.raw = raw
        self._host = host
        self._at = at

    def holds(self, beat: dict[str, Any]) -> bool:
        """Whether it is still what its hypervisor says, by a sign of life."""
        return bool(self.raw) and self._at == beat.get("at")

    def told_again(self, beat: dict[str, Any]) -> _Text:
        """The same, and what was read of it, after a sign of life that names another time."""
        self._at = beat.get("at", "")
        return self

    @cached_property
    def read(self) -> Inventory | None:
        """None where there is none, or none that we understand: one must not hide the others."""
        return self._loaded(lambda plain: schemas.load(Inventory, plain))

    @cached_property
    def head(self) -> tuple[Inventory, int] | None:
        """Without its domains, and how many these are: to load them takes most of the time."""
        return self._loaded(
            lambda plain: (
                schemas.load(Inventory, {**plain, "domains": []}),
                len(plain["domains"]),
            )
        )

    def _loaded(self, load: Callable[[Any], T]) -> T | None:
        if not self.raw:
            return None
        try:
            return load(json.loads(self.raw))
        except (InvalidRequest, ValueError, TypeError, KeyError) as error:
            log.warning("the inventory of %s is left out: %s", self._host, error)
            return None


@dataclass(frozen=True)
class Said:
    """One hypervisor: whether its worker lives, when it was heard of, and what it said last."""

    host: str
    alive: bool
    seen: str
    _text: _Text = field(repr=False)

    @property
    def inventory(self) -> Inventory | None:
        """What it said last; None where Redis has nothing of it that can be read."""
        return self._text.read

    @property
    def certain(self) -> bool:
        """Whether its domains are so now: it lives, and its libvirt answers."""
        head = self._text.head
        return self.alive and head is not None and not head[0].trouble

    def info(self) -> HostInfo:
        """It as an operator sees it."""
        head = self._text.head
        if head is None:
            return HostInfo(self.host, self.alive, self.seen)
        said, domains = head
        return HostInfo(
            host=self.host,
            alive=self.alive,
            seen=self.seen,
            libvirt=said.versions.get("libvirt", ""),
            qemu=said.versions.get("qemu", ""),
            domains=domains,
            repositories=tuple(one.name for one in said.repositories),
            storage=said.repositories,
            trouble=said.trouble,
        )

    def domains(self) -> list[DomainInfo]:
        """Its domains; their state is ``unreachable`` or ``unknown`` where it cannot be told."""
        known = self.inventory.domains if self.inventory else ()
        if self.certain:
            return list(known)
        state = UNKNOWN if self.alive else UNREACHABLE
        return [replace(domain, state=state) for domain in known]

    def called(self, name: str) -> list[DomainInfo]:
        """Its domains of that name or uuid, as it said them; cheap where it has none."""
        if json.dumps(name).encode() not in self._text.raw or self.inventory is None:
            return []
        return [d for d in self.inventory.domains if name in (d.name, d.uuid)]


class Inventories:
    """Reads all hypervisors in at most two round trips, whatever their number."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._texts: dict[str, _Text] = {}

    def look(self) -> dict[str, Said]:
        """Every hypervisor heard of, by name, the gone ones too.

        :raises NotReachable: Redis does not answer.
        """
        known = self._texts
        with runs.reachable():
            seen, beats = self._signs(list(known))
            fresh = sorted(seen.keys() - known.keys())
            # A gone one may have been back, and gone again, since we looked.
            stale = [
                host
                for host, beat in beats.items()
                if host in seen and not (beat and known[host].holds(beat))
            ]
            read = [*fresh, *stale]
            keys = [*map(queues.host_key, fresh), *map(queues.inventory_key, read)]
            got: Any = self._client.mget(keys) if keys else []
        beats |= dict(zip(fresh, map(_beat, got), strict=False))
        texts = {
            host: _Text(host, beats[host].get("at", ""), raw or b"")
            for host, raw in zip(read, got[len(fresh) :], strict=True)
        }
        for host in stale:
            if texts[host].raw == known[host].raw:
                texts[host] = known[host].told_again(beats[host])
        # Several threads may look at once: each goes by what it has read itself.
        now = {host: texts.get(host) or known[host] for host in sorted(seen)}
        self._texts = now
        return {host: Said(host, bool(beats[host]), seen[host], text) for host, text in now.items()}

    def one(self, host: str) -> Said | None:
        """One hypervisor; None where nothing was ever heard of it.

        :raises NotReachable: Redis does not answer.
        """
        with runs.reachable(), self._client.pipeline(transaction=False) as pipe:
            pipe.hget(queues.HOSTS_KEY, host)
            pipe.mget([queues.host_key(host), queues.inventory_key(host)])
            answer: Any = pipe.execute()
        seen, (beat, raw) = answer
        if seen is None:
            return None
        return Said(host, bool(_beat(beat)), seen.decode(), _Text(host, "", raw or b""))

    def _signs(self, hosts: list[str]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """When each hypervisor was heard of, and the signs of life of those named."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(queues.HOSTS_KEY)
            if hosts:
                pipe.mget([queues.host_key(host) for host in hosts])
            answer: Any = pipe.execute()
        seen = {host.decode(): when.decode() for host, when in answer[0].items()}
        return seen, dict(zip(hosts, map(_beat, answer[1] if hosts else ()), strict=True))


def _beat(raw: bytes | None) -> dict[str, Any]:
    """A sign of life, empty where there is none."""
    try:
        found = json.loads(raw) if raw else {}
    except ValueError:
        return {}  # one hypervisor's keeps nobody from the others'
    return found if isinstance(found, dict) else {}
