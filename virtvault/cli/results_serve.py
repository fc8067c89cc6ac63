"""The end of serving a point for people."""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.models import ServeResult

__all__ = ["show"]


def show(result: ServeResult) -> None:
    """How it ended, and after how long."""
    took = output.duration(output.seconds_between(result.started, result.finished))
    click.echo(
        f"export of point {click.style(result.point, bold=True)} of {result.domain} on "
        f"{result.host} {result.state} after {took}"
    )
