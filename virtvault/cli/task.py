"""``virtvault task``: look again at a backup or restore."""

from __future__ import annotations

import click

from virtvault.cli.follow import finish
from virtvault.cli.options import connect, json_option

__all__ = ["task"]


@click.command()
@click.argument("task_id", metavar="ID")
@json_option
def task(task_id: str, as_json: bool) -> None:
    """Follow the task ID to its end and show its result."""
    finish(connect().handle(task_id), f"task {task_id}", detach=False, as_json=as_json)
