"""``virtvault jobs``, ``pause``, ``resume``, ``cancel``: block jobs that run now."""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option

__all__ = ["jobs", "pause", "resume", "cancel"]


@click.command()
@click.option("--host", default="", help="Only this hypervisor.")
@json_option
def jobs(host: str, as_json: bool) -> None:
    """List the block jobs of all hypervisors: ours (with their task) and others'."""
    found = connect().jobs(host)
    if as_json:
        output.document(found)
        return
    output.table(
        ("HOST", "DOMAIN", "JOB", "TYPE", "STATUS", ">DONE", ">OF", ">LIMIT", "TASK"),
        (
            (
                job.host,
                job.domain,
                job.job,
                job.type,
                job.status,
                output.size(job.done),
                output.size(job.total),
                f"{output.size(job.speed)}/s" if job.speed else "-",
                job.task_id or "-",
            )
            for job in found
        ),
        empty="No block jobs.",
    )


@click.command()
@click.argument("task_id", metavar="ID")
@json_option
def pause(task_id: str, as_json: bool) -> None:
    """Pause the block jobs of the task ID."""
    _done("pause", task_id, connect().pause(task_id), as_json)


@click.command()
@click.argument("task_id", metavar="ID")
@json_option
def resume(task_id: str, as_json: bool) -> None:
    """Let the paused block jobs of the task ID go on."""
    _done("resume", task_id, connect().resume(task_id), as_json)


@click.command()
@click.argument("task_id", metavar="ID")
@json_option
def cancel(task_id: str, as_json: bool) -> None:
    """Cancel the task ID; no point is published and the next incremental loses nothing."""
    _done("cancel", task_id, connect().cancel(task_id), as_json)


def _done(action: str, task_id: str, sentence: str, as_json: bool) -> None:
    if as_json:
        output.document({"task_id": task_id, "action": action, "detail": sentence})
    else:
        click.echo(sentence)
