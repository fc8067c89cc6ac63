"""A guest runs from a point, and the worker that takes it up finds no repository: it waits."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from virtvault.errors import Cancelled, VirtvaultError
from virtvault.models import Point, RestoreRequest
from workers import definitions, storage_daemon
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.journal import Run
from workers.repository import DirectoryRepository, open_repository
from workers.restore.story import key_of, take_directories

__all__ = ["found"]

log = logging.getLogger(__name__)

# Of an instant restore: from here on a guest's own data may be in its images.
RUNS = ("booting", "pulling", "copied")


def found(engine: Engine, request: RestoreRequest, ties: Ties) -> tuple[DirectoryRepository, Point]:
    """The point of a restore; where its guest runs already, however long that takes.

    :raises VirtvaultError: it is not there, and nothing runs from it.
    :raises Cancelled: a guest was waiting for it, and is taken away.
    :raises Detached: the worker is stopping.
    """
    run = engine.journal.read(ties.task_id)
    try:
        return _open(engine, request)
    except VirtvaultError as error:
        if run is None or run.way != "instant" or run.phase not in RUNS:
            raise
        log.warning("task %s waits for its repository: %s", ties.task_id, error)
    keys = (key_of("to", run.draft["to"]), key_of("name", run.draft["name"]), run.draft["uuid"])
    with contextlib.ExitStack() as held:
        for key in keys:
            held.enter_context(engine.journal.hold(key, ties.task_id))
        return _wait(engine, request, ties, run)


def _wait(
    engine: Engine, request: RestoreRequest, ties: Ties, run: Run
) -> tuple[DirectoryRepository, Point]:
    ties.domain = run.draft["name"]
    ties.step(run.phase)
    while True:
        try:
            ties.check(engine.journal)
        except Cancelled as cancelled:
            if run.phase != "copied":  # then all is there, and it is not taken away any more
                _take_away(engine, run)
                raise Cancelled(
                    f"Task {ties.task_id} was cancelled; its domain and images are gone.",
                    f"Its point stays protected: `virtvault unprotect {run.point}` once the "
                    "repository is there again.",
                ) from cancelled
        if ties.stopping():
            raise Detached
        with contextlib.suppress(VirtvaultError):
            return _open(engine, request)
        definitions.resume_after_fault(engine.hypervisor, run.draft["uuid"])
        ties.sample(())
        time.sleep(engine.pace.longest)


def _open(engine: Engine, request: RestoreRequest) -> tuple[DirectoryRepository, Point]:
    repository = open_repository(engine.settings, request.repository)
    return repository, repository.find(request.point)


def _take_away(engine: Engine, run: Run) -> None:
    """What :meth:`Instant.undo` does, by the journal alone."""
    uuid, to = run.draft["uuid"], Path(run.draft["to"])
    if definitions.is_defined(engine.hypervisor, uuid):
        definitions.end(engine.hypervisor, uuid)
        definitions.undefine(engine.hypervisor, uuid)
    daemon = storage_daemon.daemon_of(engine.settings.runtime_dir, "restore", tag_of(run.task_id))
    daemon.end()
    daemon.remove()
    if run.draft.get("nvram"):
        (to / f"{run.draft['name']}_VARS.fd").unlink(missing_ok=True)
    for target in run.draft.get("overlays", []):
        (to / f"{target}.qcow2").unlink(missing_ok=True)
    take_directories(run)
    engine.journal.forget(run.task_id)
