"""Wait for a task: show its progress, then its result; Ctrl-C only stops looking."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from virtvault.cli import output, results
from virtvault.cli.progress import progress_display

if TYPE_CHECKING:
    from virtvault.client import Handle

__all__ = ["finish"]


def finish(handle: Handle, what: str, *, detach: bool, as_json: bool) -> None:
    """Follow ``handle`` to its end, or leave it running where ``detach`` is set.

    :raises VirtvaultError: as the task did.
    """
    again = f"virtvault task {handle.task_id}"
    if detach:
        _detached(handle, f"The {what} is task {handle.task_id}.", again, as_json)
        return
    named = what if handle.task_id in what else f"{what}, task {handle.task_id}"
    click.echo(f"{named}, on {handle.host}" if handle.host else named, err=True)
    try:
        with progress_display() as display:
            result = handle.wait(on_progress=display)
    except KeyboardInterrupt:
        click.echo(f"\ndetached; the {what} goes on.", err=True)
        _detached(handle, "", again, as_json)
        return
    if as_json:
        output.document(result)
    else:
        results.show_result(result)


def _detached(handle: Handle, sentence: str, again: str, as_json: bool) -> None:
    if as_json:
        output.document({"task_id": handle.task_id, "host": handle.host, "state": "detached"})
        return
    if sentence:
        click.echo(sentence)
    click.echo(f"Look again with: {again}")
