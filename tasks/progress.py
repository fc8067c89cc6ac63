"""A running task's ties to Redis and Flower, kept by a side thread.

The thread writes the latest sample, renews the lease and the run record, and sends Flower its
event. It alone talks to Redis while work is under way: a slow or absent Redis delays or fails
nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import redis
from celery import Celery

from virtvault import queues, schemas
from virtvault.models import Progress
from virtvault.runs import RunRecord
from virtvault.settings import Settings

__all__ = ["Running", "in_words"]

log = logging.getLogger(__name__)

# Seconds between two writes: what a person can follow, and one pipeline of Redis commands.
INTERVAL = 0.5
# Samples kept in the stream, over all tasks.
STREAM_LENGTH = 10_000
# Seconds the latest sample outlives its task.
KEEP_PROGRESS = 86_400


class Running:
    """Holds a run while its task's body is at work."""

    def __init__(
        self, app: Celery, client: redis.Redis, settings: Settings, run: RunRecord
    ) -> None:
        self._app = app
        self._client = client
        self._lease = settings.lease_seconds
        self._host = settings.host
        self._token = f"{settings.host} {uuid.uuid4()}"
        self._run = replace(run, state="running")
        self._latest: Progress | None = None
        self._changed = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name=f"progress {run.task_id}", daemon=True
        )

    def report(self, progress: Progress) -> None:
        """Take a sample; never blocks."""
        self._latest = progress
        self._changed.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._changed.set()
        # The last write has its chance; with Redis away the sweep closes the run later.
        self._thread.join(2.0)

    def _keep(self) -> None:
        with _sender(self._app) as send:
            while not self._ended.is_set():
                self._flush(send, final=False)
                self._changed.wait(self._lease / 3)
                self._changed.clear()
                self._ended.wait(INTERVAL)
            self._flush(send, final=True)

    def _flush(self, send: Callable[[Progress, RunRecord, str], None], *, final: bool) -> None:
        sample = self._latest
        try:
            self._hold(final)
            if sample is not None:
                text = json.dumps(schemas.dump(sample))
                key = queues.progress_key(self._run.task_id)
                self._client.set(key, text, ex=KEEP_PROGRESS)
                self._client.xadd(
                    queues.PROGRESS_STREAM,
                    {"task": self._run.task_id, "progress": text},
                    maxlen=STREAM_LENGTH,
                )
        except redis.RedisError as error:
            log.info("progress of task %s is not shown now: %s", self._run.task_id, error)
            return
        if sample is not None:
            send(sample, self._run, self._host)

    def _hold(self, final: bool) -> None:
        """Renew or give back the lease, unless another delivery of the task has it.

        The record stays "running": the sweep ends it when the result is in the backend, since a
        worker may still die between the one and the other.
        """
        lease = queues.lease_key(self._run.task_id)
        holder: Any = self._client.get(lease)
        if holder not in (None, self._token.encode()):
            return
        if final:
            self._client.delete(lease)
        else:
            self._run.write(self._client)
            self._client.set(lease, self._token, ex=self._lease)


def in_words(progress: Progress) -> str:
    """A sample as Flower's column shows it."""
    if progress.phase not in ("copying", "verifying"):
        return progress.phase
    words = f"{progress.percent:.0f} % · {progress.rate / 2**20:.0f} MiB/s"
    return words + (f" · ETA {progress.eta:.0f} s" if progress.eta >= 0 else "")


@contextmanager
def _sender(app: Celery) -> Iterator[Callable[[Progress, RunRecord, str], None]]:
    """A function that sends Flower's event, on a connection of this thread's own."""
    state: dict[str, Any] = {}

    def send(sample: Progress, run: RunRecord, host: str) -> None:
        try:
            if "dispatcher" not in state:
                state["connection"] = app.connection_for_write(connect_timeout=5)
                state["dispatcher"] = app.events.Dispatcher(
                    state["connection"], hostname=f"worker@{host}"
                )
            state["dispatcher"].send(
                "task-progress",
                uuid=run.task_id,
                # Flower that was restarted meanwhile learns the task's name from this.
                name=run.task,
                progress=in_words(sample),
                phase=sample.phase,
                domain=sample.domain,
                host=host,
                retry=False,
            )
        except Exception as error:  # anything of kombu's: Flower's view is never worth a backup
            log.info("Flower is not told now: %s", error)
            _close(state)

    try:
        yield send
    finally:
        _close(state)


def _close(state: dict[str, Any]) -> None:
    connection = state.pop("connection", None)
    state.pop("dispatcher", None)
    if connection is not None:
        connection.release()
