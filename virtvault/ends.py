"""Reading the stream of runs that ended: what there is, oldest first, and what comes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import redis

from virtvault import queues, runs, schemas, streams
from virtvault.errors import InvalidRequest
from virtvault.models import RunInfo

__all__ = ["read"]

log = logging.getLogger(__name__)


def read(client: redis.Redis, last: int = 50, follow: bool = False) -> Iterator[RunInfo]:
    """See :meth:`virtvault.fleet.Fleet.ends`."""
    with runs.reachable():
        entries: Any = client.xrevrange(queues.ENDS_STREAM, count=max(last, 1))
    yield from _ends(entries[:last][::-1])
    if follow:
        position = entries[0][0] if entries else streams.START
        for coming in streams.follow(client, queues.ENDS_STREAM, position):
            yield from _ends(coming)


def _ends(entries: Iterable[streams.Entry]) -> Iterator[RunInfo]:
    """What the entries hold. One that is wrong must not hide the others."""
    for entry_id, fields in entries:
        try:
            yield schemas.load(RunInfo, json.loads(fields.get(b"run", b"")))
        except (InvalidRequest, ValueError) as error:
            log.warning("entry %s of the ends stream is left out: %s", entry_id.decode(), error)
