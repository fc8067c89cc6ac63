"""Keeping prune away from a point while domains run from it, one entry a task."""

from __future__ import annotations

import contextlib
import logging

from virtvault.errors import PointBusy, RepositoryUnusable, VirtvaultError
from virtvault.models import Point
from workers.repository import DirectoryRepository, sidecar

__all__ = ["keep", "let_go"]

log = logging.getLogger(__name__)


def keep(repository: DirectoryRepository, point: Point, task_id: str, reason: str) -> None:
    """Protect a point until :func:`let_go`, beside whoever else does.

    :raises PointBusy: it is being pruned.
    """
    directory = repository.directory(point.uuid, point.id)
    try:
        with repository.alone(point.uuid, task_id):
            if (directory / sidecar.PRUNING).exists():
                raise PointBusy(f"Point {point.id} is being pruned.", "Restore another point.")
            said = sidecar.read(directory, sidecar.PROTECTED) or {}
            tasks = {**said.get("tasks", {}), task_id: reason}
            said = {"reason": reason, **said, "tasks": tasks}
            sidecar.write(directory, sidecar.PROTECTED, said)
    except RepositoryUnusable as error:
        # A repository that is mounted read-only: nobody prunes it from here.
        log.info("point %s is not protected: %s", point.id, error)


def let_go(repository: DirectoryRepository, point: Point, task_id: str) -> None:
    """Take one task's protection back; what others and an operator said stays."""
    directory = repository.directory(point.uuid, point.id)
    if not (directory / sidecar.PROTECTED).exists():
        return  # what was refused leaves no trace in the repository
    with contextlib.suppress(VirtvaultError), repository.alone(point.uuid, task_id):
        said = sidecar.read(directory, sidecar.PROTECTED)
        if said is None or task_id not in said.get("tasks", {}):
            return
        ours = said["tasks"].pop(task_id)
        others = said["tasks"]
        if said.get("reason") == ours:
            if not others:
                sidecar.drop(directory, sidecar.PROTECTED)
                return
            said["reason"] = next(iter(others.values()))
        if not others:
            del said["tasks"]
        sidecar.write(directory, sidecar.PROTECTED, said)
