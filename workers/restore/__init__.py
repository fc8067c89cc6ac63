"""Restores: the disks of a point brought back as files, on devices, in place, or behind a guest.

``flatten`` and ``chain`` copy by block jobs in a qemu-storage-daemon (:mod:`.copying`), so that
progress, pause, cancel and recovery are those of a backup; ``instant`` boots first and pulls then
(:mod:`.instant`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from virtvault import schemas
from virtvault.errors import DestinationExists, InvalidRequest, VirtvaultError
from virtvault.models import RestoreRequest, RestoreResult
from workers import storage_daemon
from workers.backup import Duplicate
from workers.engine import Engine, Ties, tag_of
from workers.jobs import Detached
from workers.journal import HeldElsewhere
from workers.restore import awaiting
from workers.restore.copying import add
from workers.restore.destination import image_of
from workers.restore.files import Files
from workers.restore.in_place import InPlace
from workers.restore.instant import Instant
from workers.restore.story import Story, take_directories
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
    _require_same(engine, request, ties.task_id)
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
    try:
        story = _story(engine, request, ties)
    except HeldElsewhere as held_by:
        if held_by.holder == ties.task_id:
            raise Duplicate from held_by
        raise
    except VirtvaultError as error:
        if remains := _abandon(engine, ties):
            add(error, f"It may have left: {', '.join(remains)}. Remove it (`rbd rm`).")
        raise
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


def _story(engine: Engine, request: RestoreRequest, ties: Ties) -> Story:
    repository, point = awaiting.found(engine, request, ties)
    ties.domain = point.domain
    kind: type[Story] = Files
    if request.in_place:
        kind = InPlace
    elif request.mode == "instant":
        kind = Instant
    return kind(engine, request, ties, repository, point)


def _require_same(engine: Engine, request: RestoreRequest, task_id: str) -> None:
    """:raises InvalidRequest: the journal has another run of that task; it is left alone."""
    run = engine.journal.read(task_id)
    if run is None:
        return
    if run.kind == "restore":
        begun = schemas.load(RestoreRequest, run.request)
        # How fast it goes is no part of what it does.
        if replace(begun, speed=0) == replace(request, speed=0):
            return
    raise InvalidRequest(
        f"Task {task_id} is at work already, on something else: a {run.kind} of {run.domain}.",
        "Enqueue the restore under an id of its own.",
    )


def _abandon(engine: Engine, ties: Ties) -> list[str]:
    """Take away what a copying restore had begun that cannot go on: its domain is gone, say.

    Images that are being moved into their places stay: forward alone ends well. Gives the RBD
    images that are there still.

    :raises Cancelled: that was asked for, too.
    """
    run = engine.journal.read(ties.task_id)
    if run is None or run.way == "instant" or run.phase in ("swapping", "committed"):
        return []
    remains = []
    with contextlib.ExitStack() as held:
        try:
            for key in run.draft.get("locks", []):
                held.enter_context(engine.journal.hold(key, ties.task_id))
        except HeldElsewhere as held_by:
            if held_by.holder == ties.task_id:
                raise Duplicate from held_by
            return []
        daemon = daemon_of(engine, run.task_id)
        daemon.end()
        daemon.remove()
        for partial in run.draft.get("partials", []):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                Path(partial).unlink()
        take_directories(run)
        for target in run.draft.get("identities", {}):
            wanted = run.request["devices"][target]
            try:
                image_of(engine.settings, target, wanted, tag_of(run.task_id)).remove()
            except VirtvaultError as error:
                remains.append(f"the partial image of {wanted} ({error.message})")
        engine.journal.forget(run.task_id)
    if engine.journal.wishes(run.task_id).exists():
        ties.check(engine.journal)
    return remains
