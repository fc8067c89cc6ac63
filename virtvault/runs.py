"""Run records: what keeps a task from being lost with its message.

``submit`` records a run in Redis *before* it publishes the message. A worker that holds a run
keeps its lease key alive. A run without a lease whose queue is empty has lost its message or its
worker, and is published again under the same task id (:mod:`tasks.sweep`); what a second delivery
finds at work or done, it leaves or returns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from virtvault import queues
from virtvault.errors import NotReachable
from virtvault.settings import Settings

__all__ = ["RunRecord", "connect", "publish", "reachable", "submit"]

# Seconds a finished run's record and progress stay to be looked at.
KEEP_FINISHED = 7 * 86400


@dataclass(frozen=True)
class RunRecord:
    """One run: task name, queue, request as sent, and its state ``queued|running|ended``.

    ``origin`` is the slot of a policy that it fills (see :mod:`beat.state`), empty for others.
    """

    task_id: str
    task: str
    queue: str
    host: str
    request: dict[str, Any]
    state: str = "queued"
    created: float = 0.0
    origin: str = ""

    def fields(self) -> dict[Any, Any]:
        """It as Redis has it."""
        return {
            "task_id": self.task_id,
            "task": self.task,
            "queue": self.queue,
            "host": self.host,
            "request": json.dumps(self.request),
            "state": self.state,
            "created": repr(self.created),
            "origin": self.origin,
        }

    def write(self, client: redis.Redis) -> None:
        """Record it, open or ended."""
        key = queues.run_key(self.task_id)
        with client.pipeline() as pipe:
            pipe.hset(key, mapping=self.fields())
            if self.state == "ended":
                pipe.srem(queues.OPEN_RUNS_KEY, self.task_id)
                pipe.expire(key, KEEP_FINISHED)
            else:
                pipe.sadd(queues.OPEN_RUNS_KEY, self.task_id)
                pipe.persist(key)
            pipe.execute()

    @classmethod
    def read(cls, client: redis.Redis, task_id: str) -> RunRecord | None:
        """The record of a task, None where Redis has none (any more)."""
        raw: Any = client.hgetall(queues.run_key(task_id))
        return cls.parse(raw) if raw else None

    @classmethod
    def parse(cls, raw: dict[bytes, bytes]) -> RunRecord:
        """A record from what Redis has of it."""
        text = {k.decode(): v.decode() for k, v in raw.items()}
        return cls(
            task_id=text["task_id"],
            task=text["task"],
            queue=text["queue"],
            host=text["host"],
            request=json.loads(text["request"]),
            state=text["state"],
            created=float(text["created"]),
            origin=text.get("origin", ""),
        )


def connect(settings: Settings) -> redis.Redis:
    """A client of the broker's Redis; connects at first use and gives up after seconds."""
    return redis.Redis.from_url(
        settings.redis_url, socket_timeout=5, retry_on_error=[redis.ConnectionError]
    )


def submit(app: Celery, client: redis.Redis, run: RunRecord) -> None:
    """Record a run, then publish it.

    :raises NotReachable: Redis does not answer; the run may be recorded, never published twice.
    """
    with reachable():
        run.write(client)
        publish(app, run)


def publish(app: Celery, run: RunRecord, producer: Any = None) -> None:
    """Publish the message of a recorded run under its own task id.

    :param producer: one of kombu's to publish many with.
    """
    app.send_task(
        run.task, args=[run.request], task_id=run.task_id, queue=run.queue, producer=producer
    )


@contextmanager
def reachable() -> Iterator[None]:
    """Make the many words of "Redis is away" one.

    :raises NotReachable: it is.
    """
    try:
        yield
    except (redis.RedisError, OperationalError, OSError) as error:
        raise NotReachable(
            f"Redis does not answer: {str(error).rstrip('.')}.",
            "Start it (`virtvault up` on a single hypervisor), or mend broker_url.",
        ) from error


def new_record(
    task_id: str, task: str, queue: str, host: str, request: dict[str, Any]
) -> RunRecord:
    """A record of now."""
    return RunRecord(task_id, task, queue, host, request, "queued", time.time())
