"""The sweep: runs that no living worker holds are published again under the same task id.

A run is lost when it has no lease, its message is not in its queue, and it was so for a grace
time. That is so, too, where who recorded it died before it published the message. Publishing one
that was not lost costs a look: the second delivery finds the first at work and steps aside, or
finds the committed point and returns it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import redis
from celery import Celery

from virtvault import queues
from virtvault.runs import RunRecord, publish

__all__ = ["sweep"]

log = logging.getLogger(__name__)

# Seconds a run may be without lease and message before it counts as lost: longer than a worker
# needs from taking a message to writing its lease.
GRACE = 10
# Seconds a suspicion is remembered: longer than any time between two rounds.
SUSPECTED = 86_400
READY = ("SUCCESS", "FAILURE", "REVOKED")


def sweep(app: Celery, client: redis.Redis) -> list[str]:
    """Publish lost runs again; gives their task ids."""
    published = []
    waiting: dict[str, set[str]] = {}
    members: Any = client.smembers(queues.OPEN_RUNS_KEY)
    for task_id in sorted(member.decode() for member in members):
        run = RunRecord.read(client, task_id)
        if run is None:
            client.srem(queues.OPEN_RUNS_KEY, task_id)
            continue
        if client.exists(queues.lease_key(task_id)):
            client.delete(_suspect_key(task_id))
            continue
        if app.backend.get_task_meta(task_id, cache=False)["status"] in READY:
            replace(run, state="ended").write(client)
            continue
        if run.queue not in waiting:
            waiting[run.queue] = _waiting(client, run.queue)
        if task_id in waiting[run.queue]:
            client.delete(_suspect_key(task_id))
            continue
        # Redis' own clock: suspected now, lost when still so after the grace time.
        if client.set(_suspect_key(task_id), "1", nx=True, ex=SUSPECTED):
            continue
        left: Any = client.ttl(_suspect_key(task_id))
        if SUSPECTED - left < GRACE:
            continue
        if not client.delete(_suspect_key(task_id)):
            continue  # another sweep does it just now
        log.warning("run %s has no worker and no message: published again", task_id)
        publish(app, run)
        published.append(task_id)
    return published


def _waiting(client: redis.Redis, queue: str) -> set[str]:
    """The task ids of the messages in a queue. Others may have put some there that have none."""
    messages: Any = client.lrange(queue, 0, -1)
    found = (json.loads(message).get("headers") or {} for message in messages)
    return {headers["id"] for headers in found if "id" in headers}


def _suspect_key(task_id: str) -> str:
    return f"virtvault:suspect:{task_id}"
