"""The end of a restore, for people."""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.models import RestoreResult

__all__ = ["show"]


def show(result: RestoreResult) -> None:
    """What was restored, to where, and what to know of it."""
    point = click.style(result.point, bold=True)
    where = f" to {result.to}" if result.to else ""
    click.echo(f"restored point {point} of {result.domain} on {result.host}{where}")
    took = output.duration(output.seconds_between(result.started, result.finished))
    click.echo(f"{result.mode} from repository {result.repository}, took {took}")
    if result.booted:
        until = output.duration(output.seconds_between(result.started, result.booted))
        click.echo(f"its guest ran after {until}; it needs the repository no more")
    if result.name:
        click.echo(f"domain {click.style(result.name, bold=True)} ({result.domain_uuid})")
    output.table(
        ("DISK", "FORMAT", ">SIZE", ">STORED", "FILE"),
        (
            (
                disk.target,
                disk.format,
                output.size(disk.virtual_size),
                output.size(disk.stored),
                disk.path,
            )
            for disk in result.disks
        ),
    )
    for note in result.notes:
        click.echo(f"note: {note}")
