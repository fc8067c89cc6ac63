"""``virtvault points`` and ``show``: what can be restored."""

from __future__ import annotations

import click

from virtvault.cli import output, results
from virtvault.cli.options import connect, json_option

__all__ = ["points", "show"]


@click.command()
@click.argument("domain", default="")
@json_option
def points(domain: str, as_json: bool) -> None:
    """List the recovery points, of DOMAIN or of all.

    After each disk stands how it was stored: F for full, I for incremental.
    """
    found = connect().points(domain)
    if as_json:
        output.document(found)
        return
    output.table(
        ("POINT", "DOMAIN", "INSTANT", "DISKS", ">STORED", "CONSISTENCY", "REPOSITORY"),
        (
            (
                point.id,
                point.domain,
                output.instant(point.instant),
                " ".join(f"{d.target}:{d.sync[:1].upper()}" for d in point.disks),
                output.size(sum(d.stored for d in point.disks)),
                point.consistency,
                point.repository,
            )
            for point in found
        ),
        empty="No points.",
    )


@click.command()
@click.argument("point")
@json_option
def show(point: str, as_json: bool) -> None:
    """Show all there is to know of POINT."""
    found = connect().show(point)
    if as_json:
        output.document(found)
    else:
        results.show_point(found)
