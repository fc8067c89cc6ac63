"""``virtvault catalog``, ``protect`` and ``unprotect``."""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option

__all__ = ["catalog", "protect", "unprotect"]


@click.group()
def catalog() -> None:
    """The central index of all points. The manifests in the repositories are the truth."""


@catalog.command()
@click.option("--repository", default="", help="Only this one, by name or id. Default: all.")
@json_option
def rebuild(repository: str, as_json: bool) -> None:
    """Make the catalog anew from the manifests alone.

    Each repository is read by a living hypervisor that has it. One that none can read keeps what
    the catalog has of it. Manifests that cannot be used are named, with the reason; the exit code
    is 1 where there are any, or where a repository could not be read.
    """
    done = connect().rebuild(repository)
    if as_json:
        output.document(done)
    else:
        for one in done.repositories:
            states = ", ".join(f"{count} {state}" for state, count in sorted(one.states.items()))
            click.echo(
                f"repository {one.name} ({one.id}), read by {one.host}: {one.points} points of "
                f"{one.domains} domains{f' ({states})' if states else ''}"
            )
            for point in one.gone:
                click.echo(f"  gone: {point} was in the catalog and is not in the repository")
            for bad in one.unreadable:
                click.echo(f"  skipped: point {bad.point} of domain {bad.uuid}: {bad.why}")
        for where, why in done.unread.items():
            click.echo(f"not read: {where}: {why}")
        if not done.repositories and not done.unread:
            click.echo("No repositories.")
    if done.unread or any(one.unreadable for one in done.repositories):
        click.get_current_context().exit(1)


@click.command()
@click.argument("point")
@click.option("--reason", default="", metavar="TEXT", help="Why; `virtvault prune` says it.")
@click.option("--host", default="", help="The hypervisor that writes it. Default: looked up.")
@json_option
def protect(point: str, reason: str, host: str, as_json: bool) -> None:
    """Keep POINT whatever the rules of a prune say.

    It is written into the repository, beside the point: a catalog that is rebuilt knows it too.
    """
    status = connect().protect(point, reason, host=host)
    if as_json:
        output.document(status)
    else:
        click.echo(f"point {point} is protected: {status.protected}")


@click.command()
@click.argument("point")
@click.option("--host", default="", help="The hypervisor that writes it. Default: looked up.")
@json_option
def unprotect(point: str, host: str, as_json: bool) -> None:
    """Leave POINT to the rules of a prune again."""
    status = connect().unprotect(point, host=host)
    if as_json:
        output.document(status)
    else:
        click.echo(f"point {point} is not protected")
