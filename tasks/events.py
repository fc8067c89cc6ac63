"""The events of this hypervisor, from its watcher into the stream in Redis that all share."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from typing import Any

import redis

from virtvault import queues, runs, schemas
from virtvault.models import Event
from virtvault.settings import Settings
from workers.events import Watcher

__all__ = ["publish", "watch"]

log = logging.getLogger(__name__)

# Entries kept, over the whole fleet: some 15 MiB of Redis, and some thousand backups, of which
# each disk makes about eight. One number for all: each hypervisor trims the same stream.
STREAM_LENGTH = 50_000
# Seconds between two tries while Redis is away; the watcher keeps what it hears meanwhile.
AGAIN = 1.0
# Seconds to wait for an event: how long a stop may take.
WAIT = 1.0


def watch(given: Settings) -> None:
    """Watch and publish until the process ends. Opens nothing before it is needed."""
    watcher = Watcher(given)
    watcher.start()
    threading.Thread(
        target=publish,
        args=(watcher, runs.connect(given), threading.Event()),
        name="event publisher",
        daemon=True,
    ).start()


def publish(watcher: Watcher, client: redis.Redis, stopping: threading.Event) -> None:
    """Move what ``watcher`` heard into the stream until told to stop.

    Redis that breaks off while it answers may get the same events twice, never none.
    """
    events: Sequence[Event] = ()
    away = False
    while not stopping.is_set():
        events = events or watcher.take(WAIT)
        if not events:
            continue
        try:
            _add(client, events)
        except redis.RedisError as error:
            if not away:
                log.warning("events are kept until Redis takes them: %s", error)
            away = True
            stopping.wait(AGAIN)
            continue
        except Exception:  # must outlive anything, and not fail on the same event for ever
            log.exception("%d events are dropped: a bug", len(events))
        events, away = (), False


def _add(client: redis.Redis, events: Sequence[Event]) -> None:
    """All of them or none."""
    with client.pipeline() as pipe:
        for event in events:
            fields: dict[Any, Any] = {**schemas.dump(event), "data": json.dumps(event.data)}
            pipe.xadd(queues.EVENTS_STREAM, fields, maxlen=STREAM_LENGTH, approximate=True)
        pipe.execute()
