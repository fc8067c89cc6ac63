"""Runs that stay open, perhaps for days, hold a slot of their hypervisor each."""

from __future__ import annotations

from virtvault.errors import WorkFailed
from workers.engine import Engine
from workers.journal import Run

__all__ = ["require_one_for_others"]


def require_one_for_others(engine: Engine, task_id: str) -> None:
    """See that backups still have a slot when the task ``task_id`` holds one open.

    :raises WorkFailed: this one would take the last.
    """
    slots = engine.settings.slots
    others = [
        run.task_id
        for run in engine.journal.all()
        if _stays_open(run) and not run.error and run.task_id != task_id
    ]
    if len(others) + 1 >= slots:
        raise WorkFailed(
            f"An export more would take the last of the {slots} slots of "
            f"{engine.settings.host} (open: {', '.join(others) or 'none'}).",
            "Close one with `virtvault cancel ID`, or raise slots.",
        )


def _stays_open(run: Run) -> bool:
    return run.kind == "serve" or run.request.get("sync") == "none"
