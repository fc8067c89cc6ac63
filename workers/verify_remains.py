"""Leaving nothing of a verify behind, whoever began it and however it ended."""

from __future__ import annotations

import contextlib
import logging

from virtvault.errors import DomainStopped, UnknownDomain, VirtvaultError
from workers.engine import Engine
from workers.journal import Run
from workers.verify_boot import end_domain
from workers.verify_place import Place
from workers.verify_source import leave

__all__ = ["clear_away", "give_up"]

log = logging.getLogger(__name__)


def clear_away(engine: Engine, run: Run) -> None:
    """Take away what a run has outside its own process; safe where there is nothing.

    :raises VirtvaultError: libvirt is away, say: not all of it is gone.
    """
    place = Place(engine, run.task_id)
    if run.draft.get("booting"):
        end_domain(engine, place)
        run.draft["booting"] = False
        engine.journal.write(run)
    if run.serving:
        _leave_source(engine, run, place)
        run.serving = False
        engine.journal.write(run)
    place.remove()


def give_up(engine: Engine, run: Run, error: BaseException) -> None:
    """The run has failed: what cannot be cleared away now is for the worker's housekeeping."""
    run.error = str(error) or type(error).__name__
    try:
        clear_away(engine, run)
    except VirtvaultError as later:
        log.error("task %s: not all is cleared away yet: %s", run.task_id, later)
        engine.journal.write(run)
    else:
        engine.journal.forget(run.task_id)


def _leave_source(engine: Engine, run: Run, place: Place) -> None:
    try:
        monitor = engine.hypervisor.monitor(engine.hypervisor.domain(run.uuid))
    except (DomainStopped, UnknownDomain):
        return  # all of it ended with its QEMU
    with contextlib.closing(monitor), contextlib.suppress(DomainStopped):
        leave(monitor, place)
