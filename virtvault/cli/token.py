"""``virtvault token``: who may use the REST API, and what for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from virtvault.cli import output
from virtvault.cli.options import Invocation, json_option

if TYPE_CHECKING:
    from virtvault.tokens import TokenFile

__all__ = ["ROLES", "token"]

# Those of virtvault.tokens, which takes longer to load than `virtvault --help` should run.
ROLES = ("viewer", "operator", "restore")


@click.group()
def token() -> None:
    """Make and remove the bearer tokens of the REST API.

    Run it where Flower runs. A change holds from the next request on.
    """


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    required=True,
    help="viewer: look. operator: also back up, verify, cancel these. restore: also what gives "
    "data out or removes it: restore, export, prune.",
)
@click.option("--expires", metavar="TIME", help="Such as 90d or 12h. Default: never.")
def add(name: str, role: str, expires: str | None) -> None:
    """Make a token called NAME and print it, once: only its hash is kept."""
    secret = _file().add(name, role, datetime.now(UTC), _seconds(expires))
    click.echo(secret)
    click.echo(f"This is the only time that token {name} ({role}) is shown.", err=True)


@token.command("list")
@json_option
def list_tokens(as_json: bool) -> None:
    """List the tokens: names, roles and ends, not the tokens themselves."""
    tokens = _file().all()
    if as_json:
        output.document(
            [
                {"name": t.name, "role": t.role, "created": t.created, "expires": t.expires}
                for t in tokens
            ]
        )
        return
    now = datetime.now(UTC)
    output.table(
        ("TOKEN", "ROLE", "CREATED", "EXPIRES"),
        (
            (
                t.name,
                t.role,
                output.instant(t.created),
                (output.instant(t.expires) if t.expires else "never")
                + (" (expired)" if t.expired(now) else ""),
            )
            for t in tokens
        ),
        empty="No tokens. Make one: `virtvault token add NAME --role viewer`.",
    )


@token.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the token called NAME: it is refused from the next request on."""
    gone = _file().remove(name)
    click.echo(f"Removed token {gone.name} ({gone.role}).")


def _file() -> TokenFile:
    from virtvault import settings
    from virtvault.tokens import TokenFile

    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    return TokenFile(settings.load(invocation.config).tokens)


def _seconds(text: str | None) -> int:
    from marshmallow import ValidationError

    from virtvault.schemas.units import Duration

    if text is None:
        return 0
    try:
        seconds = int(Duration().deserialize(text))
    except ValidationError as error:
        raise click.BadParameter(str(error.messages[0]), param_hint="--expires") from error
    if not seconds:
        raise click.BadParameter("must be longer than 0; leave it out for never", None, None)
    return seconds
