"""Restores: the disks of a point brought back as files, on devices, in place, or behind a guest.

``flatten`` and ``chain`` copy by block jobs in a qemu-storage-daemon (:mod:`.copying`), so that
progress, pause, cancel and recovery are those of a backup; ``instant`` boots first and pulls then
(:mod:`.instant`).
"""

from __future__ import annotations

import contextlib

from virtvault import schemas
from virtvault.errors import DestinationExists
from virtvault.models import RestoreRequest, RestoreResult
from workers import storage_daemon
from workers.backup import Duplicate
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.journal import HeldElsewhere
from workers.repository import open_repository
from workers.restore.files import Files
from workers.restore.in_place import InPlace
from workers.restore.instant import Instant
from workers.restore.story import Story
from workers.storage_daemon import StorageDaemon

__all__ = ["daemon_of", "restore"]


def daemon_of(engine: Engine, task_id: str) -> StorageDaemon:
    """The storage daemon of a restore, running or not."""
    return storage_daemon.daemon_of(engine.settings.runtime_dir, "restore", tag_of(task_id))


def restore(engine: Engine, request: RestoreRequest, ties: Ties) -> RestoreResult:
    """Restore a point, or finish what an earlier worker began of this task.

    :raises BadInput: it cannot be done as asked; nothing was touched.
    :raises VirtvaultError: it failed; what is left, if anything, is said.
    :raises Detached: the worker is stopping; the journal has the run.
    :raises Duplicate: another thread or process holds this very task.
    """
    try:
        done = _restore(engine, request, ties)
    except (Detached, Duplicate):
        raise
    except BaseException:
        engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
        raise
    engine.journal.wishes(ties.task_id).unlink(missing_ok=True)
    return done


def _restore(engine: Engine, request: RestoreRequest, ties: Ties) -> RestoreResult:
    # A second delivery after Redis lost the result: what it did is there already.
    if (done := engine.journal.finished(ties.task_id)) is not None:
        engine.journal.forget(ties.task_id)
        return schemas.load(RestoreResult, done)
    repository = open_repository(engine.settings, request.repository)
    point = repository.find(request.point)
    ties.domain = point.domain
    kind: type[Story] = Files
    if request.in_place:
        kind = InPlace
    elif request.mode == "instant":
        kind = Instant
    story = kind(engine, request, ties, repository, point)
    try:
        with contextlib.ExitStack() as held:
            for key in story.locks():
                held.enter_context(engine.journal.hold(key, ties.task_id))
            if (done := engine.journal.finished(ties.task_id)) is not None:
                return schemas.load(RestoreResult, done)
            return story.carry_on()
    except HeldElsewhere as held_by:
        if held_by.holder == ties.task_id:
            raise Duplicate from held_by
        raise DestinationExists(
            f"Task {held_by.holder} is at work on {story.what()}.",
            f"Choose another destination, or wait for it: `virtvault task {held_by.holder}`.",
        ) from held_by
