"""Following a stream in Redis, through restarts and flushes of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import redis

from virtvault import runs
from virtvault.errors import NotReachable

__all__ = ["BATCH", "START", "Entry", "follow"]

log = logging.getLogger(__name__)

# Entries read at a time.
BATCH = 1000
# Milliseconds one read waits for something new; below the time limit of the connection.
WAIT_MS = 2000
# Seconds between two tries while Redis is away.
AGAIN = 1.0
START = b"0-0"

Entry = tuple[bytes, dict[bytes, bytes]]


def follow(client: redis.Redis, stream: str, position: bytes) -> Iterator[list[Entry]]:
    """Entries after ``position`` (an entry's id, or :data:`START`) as they come; never ends."""
    away = False
    while True:
        try:
            with runs.reachable():
                answer: Any = client.xread({stream: position}, BATCH, WAIT_MS)
                if not answer and _begun_anew(client, stream, position):
                    position = START
        except NotReachable as error:
            if not away:
                log.warning("%s What is told goes on when it is back.", error.message)
            away = True
            time.sleep(AGAIN)
            continue
        away = False
        for _, entries in answer:
            position = entries[-1][0]
            yield entries


def _begun_anew(client: redis.Redis, stream: str, position: bytes) -> bool:
    """Whether Redis was flushed and its clock stands before ``position``: ids hold the time."""
    newest: Any = client.xrevrange(stream, count=1)
    return not newest or _order(newest[0][0]) < _order(position)


def _order(entry_id: bytes) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split(b"-")))
