"""Wait for a task: show its progress, then its result; Ctrl-C only stops looking."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from virtvault.cli import output, results
from virtvault.cli.progress import progress_display
from virtvault.models import Progress, Result

if TYPE_CHECKING:
    from virtvault.client import Handle

__all__ = ["finish", "open_export"]


def open_export(handle: Handle, what: str, *, as_json: bool) -> None:
    """Wait until a snapshot export is open, say where, and leave it open.

    :raises VirtvaultError: it did not open.
    """
    result = None
    while result is None:
        progress = handle.progress()
        if progress is not None and progress.exports:
            break
        result = handle.result()
        time.sleep(0.1)
    if as_json:
        exports = progress.exports if progress else {}
        output.document(
            {
                "task_id": handle.task_id,
                "host": handle.host,
                "state": "open" if result is None else "closed",
                "exports": dict(exports),
            }
        )
    elif progress is not None and result is None:
        results.show_open(progress)
    else:
        click.echo(f"The {what} was closed already.")


def finish(handle: Handle, what: str, *, detach: bool, as_json: bool) -> Result | None:
    """Follow ``handle`` to its end, or leave it running where ``detach`` is set.

    Gives what it returned, None where it goes on.

    :raises VirtvaultError: as the task did.
    """
    again = f"virtvault task {handle.task_id}"
    if detach:
        _detached(handle, f"The {what} is task {handle.task_id}.", again, as_json)
        return None
    named = what if handle.task_id in what else f"{what}, task {handle.task_id}"
    click.echo(f"{named}, on {handle.host}" if handle.host else named, err=True)
    try:
        with progress_display() as display:
            result = handle.wait(on_progress=_with_exports(display))
    except KeyboardInterrupt:
        click.echo(f"\ndetached; the {what} goes on.", err=True)
        _detached(handle, "", again, as_json)
        return None
    if as_json:
        output.document(result)
    else:
        results.show_result(result)
    return result


def _with_exports(display: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """``display``, and where an export is read from as soon as it is open."""
    told = False

    def show(progress: Progress) -> None:
        nonlocal told
        if progress.exports and not told:
            told = True
            results.show_open(progress, err=True)
        display(progress)

    return show


def _detached(handle: Handle, sentence: str, again: str, as_json: bool) -> None:
    if as_json:
        output.document({"task_id": handle.task_id, "host": handle.host, "state": "detached"})
        return
    if sentence:
        click.echo(sentence)
    click.echo(f"Look again with: {again}")
