"""One long task as its caller sees it: state, progress, result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtvault import queues, runs, schemas
from virtvault.errors import Cancelled, NotReachable, VirtvaultError, WorkFailed
from virtvault.models import (
    BackupResult,
    ExportResult,
    Progress,
    PruneResult,
    RestoreResult,
    Result,
    ServeResult,
    VerifyResult,
)
from virtvault.runs import RunRecord

if TYPE_CHECKING:
    from virtvault.client import Client

__all__ = ["READY", "RESULTS", "Handle", "value"]

READY = ("SUCCESS", "FAILURE", "REVOKED")
RESULTS: dict[str, type[Result]] = {
    queues.BACKUP: BackupResult,
    queues.RESTORE: RestoreResult,
    queues.VERIFY: VerifyResult,
    queues.SERVE: ServeResult,
    queues.PRUNE: PruneResult,
}
# Seconds Redis may be away while somebody waits for a long task before that counts as an error.
PATIENCE = 120.0
# Seconds a run may be known to nobody (Redis was flushed) before the waiting caller sends it again.
FORGOTTEN = 20.0


class Handle:
    """One long task: wait for it, look at it."""

    def __init__(
        self, client: Client, task_id: str, task: str, host: str, run: RunRecord | None
    ) -> None:
        self.task_id = task_id
        self.host = host
        self._client = client
        self._task = task
        self._run = run

    @property
    def task(self) -> str:
        """The task's name: one of :data:`virtvault.queues.LONG_TASKS`."""
        return self._task

    def look(self) -> tuple[str, Progress | None, Result | None, VirtvaultError | None]:
        """State, progress, result and error as they are at one moment.

        :raises NotReachable: Redis does not answer. That the task itself failed is no error here.
        """
        with runs.reachable():
            progress, meta = self._progress(), self._meta()
        result = error = None
        if meta["status"] in READY:
            try:
                result = self._outcome(meta)
            except VirtvaultError as failure:
                error = failure
        return str(meta["status"]), progress, result, error

    def state(self) -> str:
        """Celery's word: PENDING, STARTED, SUCCESS, FAILURE, REVOKED."""
        with runs.reachable():
            return str(self._meta()["status"])

    def progress(self) -> Progress | None:
        """The latest sample, None where there is none (yet)."""
        with runs.reachable():
            return self._progress()

    def result(self) -> Result | None:
        """The result, None while the task is not done.

        :raises VirtvaultError: it failed, or was cancelled.
        """
        with runs.reachable():
            meta = self._meta()
        return self._outcome(meta) if meta["status"] in READY else None

    def wait(
        self,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Result:
        """Wait for the result, through restarts of Redis and of workers.

        A run that a flushed Redis has forgotten is sent again under its own task id.

        :raises TimeoutError: ``timeout`` seconds passed; the task goes on.
        :raises VirtvaultError: the task failed, was cancelled, or Redis stays away.
        """
        until = None if timeout is None else time.monotonic() + timeout
        answered = known = time.monotonic()
        pause, last = 0.02, ""
        while True:
            try:
                with runs.reachable():
                    meta, sample = self._meta(), self._progress()
                    run = RunRecord.read(self._client.redis, self.task_id)
                answered = time.monotonic()
            except NotReachable:
                if time.monotonic() - answered > PATIENCE:
                    raise
                meta, sample, run = {"status": "PENDING"}, None, self._run
            if on_progress and sample and sample.updated != last:
                last = sample.updated
                on_progress(sample)
            if meta["status"] in READY:
                return self._outcome(meta)
            if run is not None:
                known = time.monotonic()
            elif time.monotonic() - known > FORGOTTEN and self._run is not None:
                runs.submit(self._client.app, self._client.redis, self._run)
                known = time.monotonic()
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"task {self.task_id} is not done after {timeout:g} s")
            time.sleep(pause)
            pause = min(pause * 1.3, 0.3)

    def _meta(self) -> dict[str, Any]:
        meta: dict[str, Any] = self._client.app.backend.get_task_meta(self.task_id, cache=False)
        return meta

    def _progress(self) -> Progress | None:
        text: Any = self._client.redis.get(queues.progress_key(self.task_id))
        return schemas.load(Progress, json.loads(text)) if text else None

    def _outcome(self, meta: dict[str, Any]) -> Result:
        found = value(meta)
        model = RESULTS[self._task]
        if model is BackupResult and "exports" in found:
            model = ExportResult  # its sync was none
        return schemas.load(model, found)


def value(meta: dict[str, Any]) -> Any:
    """A finished task's value, or its error raised as ours."""
    if meta["status"] == "SUCCESS":
        return meta["result"]
    error = meta["result"]
    if isinstance(error, VirtvaultError):
        raise error
    if meta["status"] == "REVOKED":
        # By Celery's own revoke, before a worker of ours had it.
        raise Cancelled(
            "The task was revoked before it began; nothing was touched.",
            "Enqueue it again where it is still wanted.",
        )
    # Celery raises it under a name of its own where a worker is newer than we are.
    raise WorkFailed(f"{type(error).__name__}: {error}", "See the worker's log.")
