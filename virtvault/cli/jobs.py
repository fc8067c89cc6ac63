"""``virtvault jobs``, ``pause``, ``resume``, ``cancel``, ``speed``: block jobs that run now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option, speed_argument

__all__ = ["jobs", "pause", "resume", "cancel", "speed"]

F = TypeVar("F", bound=Callable[..., Any])


def _target(command: F) -> F:
    """TASK-OR-JOB, and what tells jobs of the same id apart."""
    for decorate in (
        click.option("--domain", default="", help="Only a job of this domain."),
        click.option("--host", default="", help="Only a job of this hypervisor."),
        click.argument("name", metavar="TASK-OR-JOB"),
    ):
        command = decorate(command)
    return command


@click.command()
@click.option("--host", default="", help="Only this hypervisor.")
@click.option("--domain", default="", help="Only this domain (a name, a uuid, or host/name).")
@json_option
def jobs(host: str, domain: str, as_json: bool) -> None:
    """List the jobs of all hypervisors: ours (OWNER is their task) and others'."""
    found = connect().jobs(host, domain)
    if as_json:
        output.document(found)
        return
    output.table(
        ("HOST", "DOMAIN", "JOB", "TYPE", "STATUS", ">DONE", ">OF", ">LIMIT", "OWNER", "ERROR"),
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
                job.task_id or "others",
                job.error or "-",
            )
            for job in found
        ),
        empty="No block jobs.",
    )


@click.command()
@_target
@json_option
def pause(name: str, host: str, domain: str, as_json: bool) -> None:
    """Pause all jobs of a task, or one job as `virtvault jobs` lists it."""
    _done("pause", name, connect().pause(name, host=host, domain=domain), as_json)


@click.command()
@_target
@json_option
def resume(name: str, host: str, domain: str, as_json: bool) -> None:
    """Let the paused jobs of a task, or one paused job, go on."""
    _done("resume", name, connect().resume(name, host=host, domain=domain), as_json)


@click.command()
@_target
@click.option("--yes", is_flag=True, help="Also a job that is not virtvault's.")
@json_option
def cancel(name: str, host: str, domain: str, yes: bool, as_json: bool) -> None:
    """Cancel a task, queued or running, by its id or by any of its jobs.

    No point is published and the next incremental loses nothing. A job that is not virtvault's
    is cancelled with --yes alone.
    """
    said = connect().cancel(name, host=host, domain=domain, others=yes)
    _done("cancel", name, said, as_json)


@click.command()
@_target
@speed_argument
@json_option
def speed(name: str, rate: int, host: str, domain: str, as_json: bool) -> None:
    """Limit each job of a task, or one job, to RATE bytes per second, such as 50M; 0: no limit."""
    said = connect().set_speed(name, rate, host=host, domain=domain)
    _done("speed", name, said, as_json)


def _done(action: str, name: str, sentence: str, as_json: bool) -> None:
    if as_json:
        output.document({"name": name, "action": action, "detail": sentence})
    else:
        click.echo(sentence)
