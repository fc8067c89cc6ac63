"""``virtvault label``: labels of a domain, in its libvirt metadata."""

from __future__ import annotations

from collections.abc import Sequence

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option

__all__ = ["label"]


@click.command()
@click.argument("domain")
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE|NAME-...")
@json_option
def label(domain: str, changes: Sequence[str], as_json: bool) -> None:
    """Set labels of DOMAIN (a name, a uuid, or host/name), or remove them.

    `virtvault label db1 tier=prod team-` sets one and removes another. They are kept in the
    domain's libvirt metadata, go with it when it migrates, and policies select by them.
    """
    wanted: dict[str, str] = {}
    for change in changes:
        name, value = _change(change)
        if name in wanted:
            raise click.BadParameter(f"{name!r} is given twice.")
        wanted[name] = value
    found = connect().label(domain, wanted)
    if as_json:
        output.document(found)
        return
    labels = output.labels(found.labels) or "no labels"
    click.echo(output.line(f"{found.host}/{found.name}: {labels}"))


def _change(text: str) -> tuple[str, str]:
    """A label and its value, empty where it is to be removed."""
    name, equals, value = text.partition("=")
    if equals and name and value:
        return name, value
    if not equals and len(text) > 1 and text.endswith("-"):
        return text[:-1], ""
    raise click.BadParameter(f"{text!r}: write NAME=VALUE to set it, or NAME- to remove it.")
