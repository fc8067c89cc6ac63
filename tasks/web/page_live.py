"""What runs at this moment, from Redis alone: it shows while central is away."""

from __future__ import annotations

import json
from typing import Any

import redis

from virtvault import Client, queues, runs, schemas
from virtvault.errors import UnknownTask, VirtvaultError
from virtvault.handle import READY
from virtvault.models import Progress
from virtvault.runs import RunRecord

__all__ = ["running"]

# Tasks shown at a time; the rest is counted.
SHOWN = 60
QUEUED_SHOWN = 20


def running(client: Client) -> dict[str, Any]:
    """The tasks at work with their latest sample, and those that wait in a queue.

    ``{"running": [...], "more": n, "queued": [...], "queued_total": n}``. ``held`` is false where
    no living worker has the task just now.

    :raises NotReachable: Redis does not answer.
    """
    with runs.reachable():
        return _look(client)


def _look(asked: Client) -> dict[str, Any]:
    client = asked.redis
    open_ids: Any = client.smembers(queues.OPEN_RUNS_KEY)
    ids = sorted(id_.decode() for id_ in open_ids)
    if not ids:
        return {"running": [], "more": 0, "queued": [], "queued_total": 0}
    samples: Any = client.mget([queues.progress_key(id_) for id_ in ids])
    leases: Any = client.mget([queues.lease_key(id_) for id_ in ids])
    begun = [
        (id_, text, lease is not None)
        for id_, text, lease in zip(ids, samples, leases, strict=True)
        if text or lease
    ]
    waiting = sorted(set(ids) - {id_ for id_, _, _ in begun})
    # One without a worker has lost it, or has ended and is not swept yet.
    begun = [one for one in begun if one[2] or not _ended(asked, one[0])]
    at_work = [_at_work(client, *one) for one in begun[:SHOWN]]
    queued = [_plain(record) for id_ in waiting[:QUEUED_SHOWN] if (record := _read(client, id_))]
    return {
        "running": [one for one in at_work if one],
        "more": max(0, len(begun) - SHOWN),
        "queued": queued,
        "queued_total": len(waiting),
    }


def _at_work(
    client: redis.Redis, task_id: str, text: bytes | None, held: bool
) -> dict[str, Any] | None:
    record = _read(client, task_id)
    if record is None:
        return None
    sample = _sample(text)
    found = {**_plain(record), "held": held, "progress": None}
    if sample is not None:
        found["domain"] = sample.domain
        found["progress"] = {**schemas.dump(sample), "percent": round(sample.percent, 1)}
        # NBD URLs are for who may read the disks.
        found["progress"]["exports"] = sorted(sample.exports)
    return found


def _ended(client: Client, task_id: str) -> bool:
    try:
        return client.handle(task_id).state() in READY
    except UnknownTask:
        return False


def _sample(text: bytes | None) -> Progress | None:
    try:
        return schemas.load(Progress, json.loads(text)) if text else None
    except (ValueError, VirtvaultError):
        return None  # of a newer worker, perhaps; the task is shown without


def _read(client: redis.Redis, task_id: str) -> RunRecord | None:
    try:
        return RunRecord.read(client, task_id)
    except (KeyError, ValueError):
        return None


def _plain(record: RunRecord) -> dict[str, Any]:
    return {
        "task_id": record.task_id,
        "kind": record.task.removeprefix("virtvault."),
        "host": record.host,
        "uuid": str(record.request.get("domain", "")),
        "point": str(record.request.get("point", "")),
        "domain": "",
        "created": record.created,
    }
