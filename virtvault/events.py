"""Reading the stream of events: what there is, newest last, and what comes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import redis

from virtvault import queues, runs, schemas
from virtvault.errors import InvalidRequest
from virtvault.models import Event
from virtvault.streams import BATCH, START, Entry
from virtvault.streams import follow as follow_stream

__all__ = ["read"]

log = logging.getLogger(__name__)


def read(
    client: redis.Redis,
    domain: str = "",
    names: Sequence[str] = (),
    host: str = "",
    last: int = 50,
    follow: bool = False,
) -> Iterator[Event]:
    """See :meth:`virtvault.client.Client.events`."""
    wanted = _Wanted(domain, names, host)
    with runs.reachable():
        position, past = _past(client, wanted, last)
    yield from past
    if follow:
        yield from filter(wanted.takes, _coming(client, wanted, position))


class _Wanted:
    """Which events somebody asked for.

    Events of a watcher belong to all domains of its hypervisor: who asks for one domain is told
    of the gaps, too. Its hypervisors are those its own events came from.
    """

    def __init__(self, domain: str, names: Sequence[str], host: str) -> None:
        given, _, self._domain = domain.rpartition("/")
        self._hosts_given = {name for name in (given, host) if name}
        self._names = [name.upper() for name in names]
        self._hosts: set[str] = set()

    def learn(self, event: Event) -> None:
        """Note where the domain was seen."""
        if self._domain and self._domain in (event.domain, event.uuid):
            self._hosts.add(event.host)

    def may_take(self, event: Event) -> bool:
        """Whether it is wanted, as far as can be told before all hypervisors are known."""
        if self._hosts_given - {event.host}:
            return False
        name = event.event.upper()
        if self._names and not any(fnmatchcase(name, pattern) for pattern in self._names):
            return False
        return not (self._domain and event.uuid) or self._domain in (event.domain, event.uuid)

    def takes(self, event: Event) -> bool:
        """Whether it is wanted."""
        known = not self._domain or bool(event.uuid) or event.host in self._hosts
        return known and self.may_take(event)


def _past(client: redis.Redis, wanted: _Wanted, last: int) -> tuple[bytes, list[Event]]:
    """The newest entry's id, and the last events that are wanted, oldest first."""
    newest, before = START, "+"
    found: list[Event] = []
    while True:
        entries: Any = client.xrevrange(
            queues.EVENTS_STREAM, before, "-", count=BATCH if last else 1
        )
        if before == "+" and entries:
            newest = entries[0][0]
        for event in _events(entries):
            wanted.learn(event)
            if wanted.may_take(event):
                found.append(event)
        taken = [event for event in found if wanted.takes(event)][:last]
        if len(entries) < BATCH or len(taken) == last:
            return newest, taken[::-1]
        before = f"({entries[-1][0].decode()}"


def _coming(client: redis.Redis, wanted: _Wanted, position: bytes) -> Iterator[Event]:
    """Events after ``position`` as they come, through restarts and flushes of Redis."""
    for entries in follow_stream(client, queues.EVENTS_STREAM, position):
        for event in _events(entries):
            wanted.learn(event)
            yield event


def _events(entries: Iterable[Entry]) -> Iterator[Event]:
    """What the entries hold. One that is wrong must not hide the others."""
    for entry_id, fields in entries:
        try:
            said: dict[str, Any] = {k.decode(): v.decode() for k, v in fields.items()}
            yield schemas.load(Event, {**said, "data": json.loads(said.get("data", ""))})
        except (InvalidRequest, ValueError) as error:
            log.warning("entry %s of the event stream is left out: %s", entry_id.decode(), error)
