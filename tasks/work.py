"""Long work on a hypervisor: the bodies of ``virtvault.backup``, ``restore``, ``verify`` …

One backup is one Celery task from STARTED to SUCCESS. The body holds no guest state: killed, it
is delivered again under the same id and goes on from the engine's journal.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery, states
from celery.exceptions import Ignore

from tasks import revocation
from tasks.facts import facts
from tasks.progress import Running
from tasks.spool import Spool
from virtvault import queues, schemas
from virtvault.errors import (
    Cancelled,
    RepositoryUnusable,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import (
    BackupRequest,
    ExportResult,
    PruneRequest,
    RestoreRequest,
    ServeRequest,
    VerifyRequest,
)
from virtvault.runs import RunRecord, new_record
from workers import job_control
from workers.backup import Duplicate, backup
from workers.engine import Engine, Ties, now
from workers.jobs import Detached
from workers.prune import prune
from workers.repository import DirectoryRepository, open_repository
from workers.restore import restore
from workers.serve import serve
from workers.verify import domains_of, verify

__all__ = ["register"]

log = logging.getLogger(__name__)

Body = Callable[[dict[str, Any], Ties], dict[str, Any]]


def register(
    app: Celery, engine: Engine, client: redis.Redis, spool: Spool, stopping: threading.Event
) -> None:
    """Add the long tasks to a hypervisor's app."""
    settings = engine.settings

    def tell(repository: DirectoryRepository, uuids: set[str]) -> None:
        """How all points of these domains are now: a missing link is seen as soon as we look."""
        at = now()
        # The work is done; a repository that goes away just now is told by the next look.
        with contextlib.suppress(RepositoryUnusable):
            spool.statuses([s for uuid in sorted(uuids) for s in repository.statuses(uuid)], at)

    def backup_body(request: dict[str, Any], ties: Ties) -> dict[str, Any]:
        wanted = schemas.load(BackupRequest, request)
        done = backup(engine, wanted, ties)
        if isinstance(done, ExportResult):
            return schemas.dump(done)
        repository = open_repository(settings, done.repository)
        spool.point(repository.find(done.point))
        tell(repository, {done.uuid})
        return schemas.dump(done)

    def restore_body(request: dict[str, Any], ties: Ties) -> dict[str, Any]:
        return schemas.dump(restore(engine, schemas.load(RestoreRequest, request), ties))

    def verify_body(request: dict[str, Any], ties: Ties) -> dict[str, Any]:
        done = verify(engine, schemas.load(VerifyRequest, request), ties)
        repository = open_repository(settings, done.repository)
        tell(repository, domains_of(repository, [verdict.point for verdict in done.verdicts]))
        return schemas.dump(done)

    def serve_body(request: dict[str, Any], ties: Ties) -> dict[str, Any]:
        return schemas.dump(serve(engine, schemas.load(ServeRequest, request), ties))

    def prune_body(request: dict[str, Any], ties: Ties) -> dict[str, Any]:
        wanted = schemas.load(PruneRequest, request)
        done = prune(engine, wanted, ties, lambda id_, point: spool.removed(id_, [point]))
        if not done.dry_run:
            repository = open_repository(settings, done.repository)
            changed = {removed.domain for removed in done.removed}
            uuids = set()
            for kept in done.kept:
                if kept.domain not in changed:
                    continue
                point = repository.find(kept.point)
                uuids.add(point.uuid)
                # Others were merged into it, by this task or by one that was killed.
                if point.merged:
                    spool.point(point)
            tell(repository, uuids)
        return schemas.dump(done)

    bodies: dict[str, Body] = {
        queues.BACKUP: backup_body,
        queues.RESTORE: restore_body,
        queues.VERIFY: verify_body,
        queues.SERVE: serve_body,
        queues.PRUNE: prune_body,
    }
    for name, body in bodies.items():
        _add(app, name, body, engine, client, spool, stopping)


def _add(
    app: Celery,
    name: str,
    body: Body,
    engine: Engine,
    client: redis.Redis,
    spool: Spool,
    stopping: threading.Event,
) -> None:
    settings = engine.settings

    # VirtvaultErrors are outcomes with a mend, not bugs: no traceback in the log. STARTED is said
    # by the body, since it would hide what the state was before.
    @app.task(  # type: ignore[untyped-decorator]
        name=name, bind=True, throws=(VirtvaultError,), track_started=False
    )
    def task(self: Any, request: dict[str, Any]) -> dict[str, Any]:
        task_id = self.request.id
        record = _record(client, task_id, name, settings.host, request)
        before = _state(app, task_id)
        if before == states.SUCCESS:
            raise Ignore  # a late second delivery of what is done
        if before == states.REVOKED:
            job_control.wish_cancelled(engine, task_id)
        else:
            with contextlib.suppress(redis.RedisError):  # shown later, or never: not worth a backup
                self.update_state(state=states.STARTED, meta={"hostname": self.request.hostname})
        started = now()

        def ended(error: VirtvaultError | None, result: dict[str, Any] | None = None) -> None:
            known = facts(engine.journal.read(task_id), result)
            spool.run(task_id, name, request, settings.host, started, error, known)

        with Running(app, client, settings, record) as running:
            ties = Ties(task_id, running.report, stopping.is_set)
            try:
                if engine.journal.read(task_id) is None:
                    # Cancelled while it was queued: before anything else can end it otherwise.
                    ties.check(engine.journal)
                result = body(request, ties)
            except Cancelled as error:
                log.info("task %s: cancelled", task_id)
                engine.journal.wishes(task_id).unlink(missing_ok=True)
                ended(error)
                revocation.conclude(app, task_id, error, settings.host, self.request)
                raise Ignore from None
            except Detached:
                log.info("task %s: left to the next worker", task_id)
                raise Ignore from None
            except Duplicate:
                log.info("task %s: another delivery is at work on it", task_id)
                raise Ignore from None
            except VirtvaultError as error:
                ended(error)
                raise
            except Exception as error:
                log.exception("task %s: a bug", task_id)
                wrapped = WorkFailed(
                    f"Internal error: {type(error).__name__}: {error}.",
                    f"This is a bug; the worker's log on {settings.host} has the trace.",
                )
                ended(wrapped)
                raise wrapped from error
            ended(None, result)
            return result


def _record(
    client: redis.Redis, task_id: str, task: str, host: str, request: dict[str, Any]
) -> RunRecord:
    """The run as submitted, or as the message tells it (Redis flushed, or sent by hand)."""
    try:
        found = RunRecord.read(client, task_id)
    except redis.RedisError:
        found = None
    return found or new_record(task_id, task, queues.host_queue(host), host, request)


def _state(app: Celery, task_id: str) -> str:
    try:
        return str(app.backend.get_task_meta(task_id, cache=False)["status"])
    except redis.RedisError:
        return str(states.PENDING)
