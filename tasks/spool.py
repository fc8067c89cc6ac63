"""What central has to be told, kept on the hypervisor's disk until it is known to have it.

Each entry is a task ``virtvault.record`` with a deterministic id: sent again until its result
says it was recorded. Recording is idempotent, so twice is harmless.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from virtvault import queues, schemas
from virtvault.errors import Cancelled, VirtvaultError
from virtvault.models import Inventory, Point, PointStatus
from workers.engine import now
from workers.journal import durable_write

__all__ = ["Spool"]

log = logging.getLogger(__name__)

# Seconds after which an entry without an answer is sent again.
AGAIN = 10.0
# Messages waiting for central from which on no more are sent: it is away, or far behind.
CROWDED = 1000


class Spool:
    """``<state_dir>/spool/<task id>.json``."""

    def __init__(self, app: Celery, state_dir: str, client: redis.Redis | None = None) -> None:
        self._app = app
        self._client = client
        self._directory = Path(state_dir, "spool")
        self._sent: dict[str, float] = {}

    def point(self, point: Point) -> None:
        """A point was committed."""
        self._add(f"record-point-{point.id}", {"point": schemas.dump(point)})

    def statuses(self, statuses: list[PointStatus], at: str) -> None:
        """Points were so when somebody began to look at them, at ``at``."""
        plain = [schemas.dump(status) for status in statuses]
        self._add(f"record-statuses-{at}", {"statuses": plain, "at": at})

    def removed(self, repository_id: str, points: list[str]) -> None:
        """Points were pruned."""
        payload = {"repository_id": repository_id, "points": points, "at": now()}
        self._add(f"record-removed-{now()}", {"removed": payload})

    def inventory(self, inventory: Inventory) -> None:
        """What this hypervisor has; takes the place of one that was not recorded yet."""
        before = set(self._directory.glob("record-inventory-*.json"))
        plain = {"inventory": schemas.dump(inventory)}
        self._add(f"record-inventory-{inventory.host}-{inventory.at}", plain)
        for path in before:
            if inventory.at not in path.name:
                path.unlink(missing_ok=True)

    def run(
        self,
        task_id: str,
        task: str,
        request: dict[str, Any],
        host: str,
        started: str,
        error: VirtvaultError | None,
        facts: dict[str, Any],
    ) -> None:
        """A run ended; ``facts`` are those of :func:`tasks.facts.facts`."""
        run = {
            "task_id": task_id,
            "task": task,
            "request": request,
            "host": host,
            "started": started,
            "finished": now(),
            "state": _state(error),
            "error": "" if error is None else error.message,
            "mend": "" if error is None else error.mend,
            **facts,
        }
        self._add(f"record-run-{task_id}", {"run": run})

    def deliver(self) -> None:
        """Send what is due and drop what has been recorded; called again and again."""
        for path in sorted(self._directory.glob("record-*.json")):
            task_id = path.stem
            try:
                if self._app.backend.get_task_meta(task_id, cache=False)["status"] == "SUCCESS":
                    path.unlink()
                    self._sent.pop(task_id, None)
                elif time.monotonic() - self._sent.get(task_id, -AGAIN) >= AGAIN:
                    self._send(task_id, json.loads(path.read_text()))
            except Exception as error:  # Redis away in any of kombu's ways: next round
                log.info("%s is not delivered yet: %s", task_id, error)
                return

    def _add(self, task_id: str, payload: dict[str, Any]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        # By content: a run that failed and later succeeded has two records to deliver.
        digest = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:8]
        task_id = f"{task_id}-{digest}"
        durable_write(self._directory / f"{task_id}.json", json.dumps(payload))
        try:
            # Before the result: who has seen the result finds the point in the catalog.
            self._send(task_id, payload)
        except Exception as error:  # Redis away in any of kombu's ways: it is on disk
            log.info("%s is not delivered yet: %s", task_id, error)

    def _send(self, task_id: str, payload: dict[str, Any]) -> None:
        # With central away each round would add another copy of all there is.
        waiting: Any = self._client.llen(queues.CENTRAL) if self._client else 0
        if waiting >= CROWDED:
            return
        self._app.send_task(
            queues.RECORD, args=[payload], task_id=task_id, queue=queues.CENTRAL, retry=False
        )
        self._sent[task_id] = time.monotonic()


def _state(error: VirtvaultError | None) -> str:
    if error is None:
        return "complete"
    return "cancelled" if isinstance(error, Cancelled) else "failed"
