"""Telling what this hypervisor has: a sign of life, the inventory in Redis, a record to central.

In the worker alone: a sign of life means that a backup which is sent here will be taken up. It is
told by a thread that waits for neither libvirt nor a repository.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import redis

from tasks.spool import Spool
from virtvault import queues, schemas
from virtvault.errors import InvalidRequest
from virtvault.models import Inventory
from virtvault.moments import written
from virtvault.settings import Settings
from workers.engine import now
from workers.inventory import Stocktaking, differs
from workers.journal import durable_write

__all__ = ["HEARTBEAT", "Teller"]

log = logging.getLogger(__name__)

# Seconds between two signs of life of a hypervisor; three missed and it counts as gone.
HEARTBEAT = 5
# Entries kept of the stream of changes, over the whole fleet. Who misses some looks at all.
STREAM_LENGTH = 1000
# Seconds after which central records an inventory again that did not change: its database may have
# been made anew.
RECORD_AGAIN = 3600.0


class Teller:
    """Looks and tells from :meth:`start` until ``stopping``.

    ``<state_dir>/inventory.json`` is what was told last: what holds while libvirt is away from the
    start, and tells when a domain that was shut off meanwhile ran last.
    """

    def __init__(
        self, given: Settings, client: redis.Redis, spool: Spool, stopping: threading.Event
    ) -> None:
        self._host = given.host
        self._client = client
        self._spool = spool
        self._stopping = stopping
        self._path = Path(given.state_dir, "inventory.json")
        self._told = _saved(self._path, given.host)
        self._stock = Stocktaking(given, self._told)
        self._looked = threading.Event()
        self._recorded = ("", -RECORD_AGAIN)

    def start(self) -> None:
        """Begin, in threads of its own."""
        for name, round_ in (("inventory", self._watch), ("heartbeat", self._keep_alive)):
            threading.Thread(target=self._go_on, args=(round_,), name=name, daemon=True).start()

    def look(self) -> None:
        """See what there is; what has changed is told by the next :meth:`beat`."""
        found, before = self._stock.look(), self._told
        if before is None or differs(before, found):
            self._told = replace(found, at=_after(before.at, found.at) if before else found.at)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            durable_write(self._path, json.dumps(schemas.dump(self._told)))

    def beat(self) -> None:
        """Say that this hypervisor is alive, and what it has where Redis does not know that.

        :raises redis.RedisError: Redis is away.
        """
        told, seen = self._told, now()
        at = told.at if told else ""
        alive = json.dumps({"host": self._host, "seen": seen, "at": at})
        key = queues.inventory_key(self._host)
        # How what holds begins: Redis may have been flushed, or have lost its last second.
        begins = json.dumps({"host": self._host, "at": at})[:-1].encode()
        known = self._client.getrange(key, 0, len(begins) - 1) == begins
        # Together: who has seen ``at`` must not find an older inventory, and keep it.
        with self._client.pipeline() as pipe:
            pipe.set(queues.host_key(self._host), alive, ex=HEARTBEAT * 3)
            pipe.hset(queues.HOSTS_KEY, self._host, seen)
            if told and not known:
                pipe.set(key, json.dumps(schemas.dump(told)))
                fields: dict[Any, Any] = {"host": self._host, "at": at}
                pipe.xadd(queues.INVENTORY_STREAM, fields, maxlen=STREAM_LENGTH)
            pipe.execute()

    def record(self) -> None:
        """Have central record what there is, where it has changed since it was given to the spool.

        One that changes all the time is recorded as often as this is called.
        """
        told, (recorded, when) = self._told, self._recorded
        if told and (told.at != recorded or time.monotonic() - when >= RECORD_AGAIN):
            self._spool.inventory(told)
            self._recorded = (told.at, time.monotonic())

    def _watch(self) -> None:
        self.look()
        self._looked.set()
        self._stock.wait(HEARTBEAT)

    def _keep_alive(self) -> None:
        # The first time until the first look, then until a change.
        self._looked.wait(HEARTBEAT)
        self._looked.clear()
        self.beat()

    def _go_on(self, round_: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                round_()
            except redis.RedisError as error:
                log.info("Redis is away: %s", error)
            except Exception:  # must outlive anything: without it the host would seem gone
                log.exception("the inventory stumbled; next round in %d s", HEARTBEAT)
                self._stopping.wait(HEARTBEAT)


def _saved(path: Path, host: str) -> Inventory | None:
    """What was told before; None where there is none that can be read, or of another host."""
    try:
        found = schemas.load(Inventory, json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, InvalidRequest) as error:
        log.warning("%s is left out: %s", path, error)
        return None
    return found if found.host == host else None


def _after(before: str, found: str) -> str:
    """``found``, or where a clock was set back the millisecond after ``before``: newest wins."""
    if found > before:
        return found
    return written(datetime.fromisoformat(before) + timedelta(milliseconds=1))
