"""``virtvault points`` and ``show``: what can be restored."""

from __future__ import annotations

from collections.abc import Collection

import click

from virtvault import schemas
from virtvault.cli import output, results
from virtvault.cli.options import connect, json_option
from virtvault.models import PointStatus

__all__ = ["points", "show"]


@click.command()
@click.argument("domain", default="")
@click.option(
    "--check", is_flag=True, help="Look into the repositories first, not only now and then."
)
@json_option
def points(domain: str, check: bool, as_json: bool) -> None:
    """List the recovery points, of DOMAIN or of all.

    After each disk stands how it was stored: F for full, I for incremental, T for top. STATE is
    ok, verified good, bad (a verify found it damaged), broken (its chain is not whole) or pruning,
    as of the last backup, verify or prune of its domain, or of now with --check; unknown where
    nobody has looked.
    """
    client = connect()
    if check:
        for where, why in client.rebuild(domain=domain).unread.items():
            click.echo(f"not looked at: {where}: {why}", err=True)
    found = client.points(domain)
    statuses = {(s.point, s.repository_id): s for s in client.statuses(domain)}
    known = {(point.id, point.repository_id): point for point in found}
    of = [statuses.get(key) for key in known]
    if as_json:
        output.document(
            [
                {**schemas.dump(point), "status": schemas.dump(status) if status else None}
                for point, status in zip(found, of, strict=True)
            ]
        )
    else:
        output.table(
            (
                "POINT",
                "DOMAIN",
                "INSTANT",
                "DISKS",
                ">STORED",
                "CONSISTENCY",
                "STATE",
                "REPOSITORY",
            ),
            (
                (
                    point.id,
                    point.domain,
                    output.instant(point.instant),
                    " ".join(f"{d.target}:{d.sync[:1].upper()}" for d in point.disks),
                    output.size(sum(d.stored for d in point.disks)),
                    point.consistency,
                    results.state(status),
                    point.repository,
                )
                for point, status in zip(found, of, strict=True)
            ),
            empty="No points.",
        )
    _say_damaged(statuses, known, err=as_json)


def _say_damaged(
    statuses: dict[tuple[str, str], PointStatus], known: Collection[tuple[str, str]], *, err: bool
) -> None:
    """Why points are not ok, and which have no manifest that could be listed."""
    for key, status in statuses.items():
        if key not in known:
            what = f"{status.state} and not listed, of domain {status.uuid}"
        elif status.state in ("bad", "broken"):
            what = status.state
        else:
            continue
        click.echo(f"{status.point} in {status.repository} is {what}: {status.why}", err=err)


@click.command()
@click.argument("point")
@json_option
def show(point: str, as_json: bool) -> None:
    """Show all there is to know of POINT."""
    client = connect()
    found, status = client.show(point), client.status(point)
    if as_json:
        plain = schemas.dump(status) if status else None
        output.document({**schemas.dump(found), "status": plain})
    else:
        results.show_point(found, status)
