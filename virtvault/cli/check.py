"""``virtvault check``: is this host ready?"""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option
from virtvault.models import CheckLine

__all__ = ["check", "show_lines"]

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@click.command()
@click.option("--host", default="", help="Another hypervisor than this one.")
@json_option
@click.pass_context
def check(ctx: click.Context, host: str, as_json: bool) -> None:
    """Test whether a hypervisor is ready for backups; exit 1 if something failed."""
    lines = connect().check(host)
    if as_json:
        output.document(lines)
    else:
        show_lines(lines)
    if any(line.verdict == "failed" for line in lines):
        ctx.exit(1)


def show_lines(lines: list[CheckLine]) -> None:
    """One line each, coloured, with the mend under it."""
    width = max((len(line.subject) for line in lines), default=0)
    for line in lines:
        verdict = click.style(f"{line.verdict:<8}", fg=COLOURS.get(line.verdict))
        click.echo(f"{verdict} {line.subject:<{width}}  {line.detail}".rstrip())
        if line.mend and line.verdict != "ok":
            click.echo(f"{'':<8} {'':<{width}}  → {line.mend}")
