"""Tells central what became of slots, until it is known to have recorded it.

The records lie in a list in Redis, and here: a batch from its head is sent as one task, under an
id made of its content, and leaves the list when that task's result says that it was recorded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from celery import Celery

from beat.state import RECORDS, Change, State
from virtvault import queues
from virtvault.errors import BadInput

__all__ = ["Records"]

log = logging.getLogger(__name__)

# Records in one task.
BATCH = 1000
# Seconds after which a batch without an answer is sent again, unless so many messages wait for
# central: then it is away, or has not come to it.
AGAIN = 15
CROWDED = 50


class Records:
    """What central is not known to have yet, oldest first."""

    def __init__(self, app: Celery, state: State) -> None:
        self._app = app
        self._state = state
        self._waiting: deque[str] = deque()
        self._size = BATCH
        self._sent: tuple[str, int, float] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def load(self) -> None:
        """Take up what another beat left, in place of what is known here."""
        found: Any = self._state.client.lrange(RECORDS, 0, -1)
        self._waiting = deque(text.decode() for text in found)
        self._sent = None

    def added(self, texts: Iterable[str]) -> None:
        """Those were written to the list. The log says each, for when central is away."""
        for text in texts:
            self._waiting.append(text)
            log.info("%s", _sentence(json.loads(text)))

    def deliver(self, now: float) -> None:
        """Send the next batch, or look what became of the last; called with each tick."""
        if self._sent is None and not self._waiting:
            return
        if self._sent is None:
            self._send(now)
            return
        task_id, count, at = self._sent
        meta = self._app.backend.get_task_meta(task_id, cache=False)
        if meta["status"] == "SUCCESS":
            self._size = BATCH
            self._forget(count)
            self._app.backend.forget(task_id)
        elif meta["status"] == "FAILURE" and isinstance(meta["result"], BadInput):
            self._refused(count, meta["result"])
        elif not 0 <= now - at < AGAIN:
            waiting: Any = self._state.client.llen(queues.CENTRAL)
            self._sent = None if waiting < CROWDED else (task_id, count, now)

    def _send(self, now: float) -> None:
        batch = list(islice(self._waiting, self._size))
        text = "[" + ",".join(batch) + "]"
        task_id = f"record-slots-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        self._app.send_task(
            queues.RECORD,
            args=[{"slots": json.loads(text)}],
            task_id=task_id,
            queue=queues.CENTRAL,
            retry=False,
        )
        self._sent = (task_id, len(batch), now)

    def _refused(self, count: int, error: BadInput) -> None:
        """Find the one that central does not take: half as many at a time, then without it."""
        self._sent = None
        if count > 1:
            self._size = count // 2
            return
        log.error("central refuses a slot's record: %s It is left out: %s", error, self._waiting[0])
        self._forget(1)

    def _forget(self, count: int) -> None:
        change = Change()
        change.add("LTRIM", RECORDS, str(count), "-1")
        self._state.commit(change)
        for _ in range(count):
            self._waiting.popleft()
        self._sent = None


def _sentence(record: dict[str, Any]) -> str:
    """``dispatched backup of db1 on hv1: policy nightly, slot …, task …; why``."""
    said = [f"policy {record['policy']}", f"slot {record['slot']}"]
    if record["task_id"]:
        said.append(f"task {record['task_id']}")
    if record["attempt"] > 1:
        said.append(f"attempt {record['attempt']}")
    where = f" on {record['host']}" if record["host"] else ""
    why = f"; {record['reason']}" if record["reason"] else ""
    what = f"{record['state']} {record['kind']} of {record['domain'] or record['uuid']}{where}"
    return " ".join(f"{what}: {', '.join(said)}{why}".split())
