"""A cancelled task is REVOKED, whichever way it was cancelled.

``virtvault cancel``, Celery's ``revoke`` and Flower's Terminate button do one and the same: they
leave the engine's wish to cancel on the hypervisor's disk, where it outlasts workers and Redis.
Celery's own way would be to kill the worker's process, which a pool of threads refuses with a
traceback, and which would leave the block jobs running.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable
from typing import Any

import redis
from celery import Celery, states
from celery.worker import state as worker_state
from celery.worker.control import control_command

from virtvault.errors import Cancelled, VirtvaultError
from virtvault.runs import RunRecord
from workers import job_control
from workers.engine import Engine

__all__ = ["cancel", "conclude", "obey"]

log = logging.getLogger(__name__)


def cancel(app: Celery, engine: Engine, task_id: str) -> str:
    """Cancel a task of this hypervisor; gives a sentence on what was done.

    One that waits in its queue is concluded here and now: who waits for it need not wait until a
    slot is free. Its message finds it REVOKED and does nothing.
    """
    sentence = job_control.cancel(engine, task_id)
    # The wish is there by now: a worker that takes the message at this moment sees it.
    if engine.journal.read(task_id) is None and _state(app, task_id) in (
        states.PENDING,
        states.REVOKED,  # by Celery's handler in some other worker, which says nothing to Flower
    ):
        error = Cancelled(
            f"Task {task_id} was cancelled before it began; nothing was touched.",
            "Enqueue it again where it is still wanted.",
        )
        conclude(app, task_id, error, engine.settings.host)
    return sentence


def conclude(
    app: Celery, task_id: str, error: Cancelled, host: str, request: Any | None = None
) -> None:
    """Store REVOKED, with ``error`` for who waits, and tell Flower."""
    app.backend.store_result(task_id, error, states.REVOKED, request=request)
    # Flower's view is never worth more than a try.
    with (
        contextlib.suppress(Exception),
        app.events.default_dispatcher(hostname=f"worker@{host}") as events,
    ):
        events.send(
            "task-revoked", uuid=task_id, terminated=True, signum=None, expired=False, retry=False
        )


def obey(app: Celery, engine: Engine, client: redis.Redis) -> None:
    """Take Celery's ``revoke`` in this process for ``virtvault cancel``.

    Both roles of a hypervisor hear it: the worker may be down, or the control role. Other hosts'
    tasks are left alone. What no role of the task's hypervisor hears, the central worker's own
    ``revoke`` still marks as REVOKED where the task has not begun.
    """

    def carry_out(task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            try:
                if _ours(app, engine, client, task_id):
                    log.info("revoke: %s", cancel(app, engine, task_id))
            except (VirtvaultError, redis.RedisError) as error:
                log.warning("revoke of task %s: %s", task_id, error)

    @control_command(  # type: ignore[untyped-decorator]
        name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]"
    )
    def revoke(_state: Any, task_id: str | list[str], **_: Any) -> dict[str, str]:
        """Cancel tasks by id; ``terminate`` and ``signal`` change nothing."""
        task_ids = [task_id] if isinstance(task_id, str) else list(task_id)
        # The consumer's own thread must not wait for QEMU or Redis.
        threading.Thread(target=carry_out, args=(task_ids,), name="revoke", daemon=True).start()
        return {"ok": f"cancelling what is ours of {', '.join(task_ids)}"}


def _ours(app: Celery, engine: Engine, client: redis.Redis, task_id: str) -> bool:
    """Whether this hypervisor has the task, and it has not ended."""
    if task_id in worker_state.requests or engine.journal.read(task_id) is not None:
        return True
    run = RunRecord.read(client, task_id)
    if run is None or run.host != engine.settings.host:
        return False
    # A queued one may have been marked already by another worker that heard the same revoke.
    return run.state == "queued" or _state(app, task_id) not in states.READY_STATES


def _state(app: Celery, task_id: str) -> str:
    return str(app.backend.get_task_meta(task_id, cache=False)["status"])
