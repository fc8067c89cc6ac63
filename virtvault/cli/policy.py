"""``virtvault policy``: what is backed up when, how and where to, and what is kept."""

from __future__ import annotations

import getpass
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from virtvault.cli import output, results_policy
from virtvault.cli.options import connect, json_option
from virtvault.errors import InvalidRequest, NotReachable
from virtvault.models import PolicyDocument, PolicyVersion

if TYPE_CHECKING:
    from virtvault.client import Client

__all__ = ["policy"]

file_help = "The policies, as YAML; - for standard input."
comment_option = click.option("--comment", default="", metavar="TEXT", help="Why, for the history.")
version_option = click.option(
    "--version", "number", type=click.IntRange(min=1), help="Default: the version in force."
)


@click.group()
def policy() -> None:
    """Which domains are backed up when, how and where to, and what is kept.

    All policies are one YAML file, applied as a whole; each version is kept.
    """


@policy.command()
@click.option("-f", "--file", "path", required=True, metavar="FILE", help=file_help)
@comment_option
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@json_option
def apply(path: str, comment: str, dry_run: bool, as_json: bool) -> None:
    """Put the policies of a file in force: all of them, or none where anything is wrong.

    Policies that the file does not have any more are removed. Says what changes, and warns of
    domains that no policy protects any more.
    """
    text = _text(path)
    document = _read(text, path)
    _put_in_force(connect(), document, text, comment, dry_run=dry_run, as_json=as_json)


@policy.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the policies in force."""
    version = connect().policies()
    if as_json:
        output.document(version.document or PolicyDocument())
    else:
        results_policy.show_list(version)


@policy.command()
@click.argument("name", default="")
@version_option
@json_option
def show(name: str, number: int | None, as_json: bool) -> None:
    """Show the policy NAME, or all of a version, with every default written out."""
    document = connect().policies(number or 0).document or PolicyDocument()
    if not name:
        found = list(document.policies)
    else:
        found = [one for one in document.policies if one.name == name]
        if not found:
            known = ", ".join(one.name for one in document.policies) or "there is none"
            raise InvalidRequest(f"There is no policy {name!r}.", f"Known policies: {known}.")
    if as_json:
        output.document(found[0] if name else document)
        return
    for one in found:
        results_policy.show_policy(one)
    if not name:
        results_policy.show_limits(document.limits)


@policy.command()
@version_option
def export(number: int | None) -> None:
    """Write the YAML of the policies as it was applied, byte for byte."""
    click.echo(connect().policies(number or 0).text.encode(), nl=False)


@policy.command()
@json_option
def history(as_json: bool) -> None:
    """List the versions of the policies, newest first."""
    versions = connect().policy_versions()
    if as_json:
        output.document(versions)
    else:
        results_policy.show_history(versions)


@policy.command()
@click.argument("name")
@comment_option
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@json_option
def delete(name: str, comment: str, dry_run: bool, as_json: bool) -> None:
    """Put a version in force that is the last one without the policy NAME.

    Points stay; they are not pruned by this policy any more.
    """
    from virtvault import policy_file

    client = connect()
    text = policy_file.without(client.policies().text or "policies: []\n", name, "the policies")
    comment = comment or f"without {name}"
    document = policy_file.read(text, "the policies")
    _put_in_force(client, document, text, comment, dry_run=dry_run, as_json=as_json)


@policy.command()
@click.option(
    "-f", "--file", "path", default="", metavar="FILE", help=f"{file_help} Default: those in force."
)
@click.option("--hours", type=click.IntRange(0, 24 * 31), default=24, help="How far to look ahead.")
@click.option("--domain", default="", help="Only this one: name, uuid or host/name.")
@click.option("--points", is_flag=True, help="Each point that is kept or removed, and why.")
@click.option("--limit", type=click.IntRange(0, 10_000), default=100, help="Runs that are listed.")
@json_option
def preview(path: str, hours: int, domain: str, points: bool, limit: int, as_json: bool) -> None:
    """Show what policies would do, and change nothing.

    Which domains they mean, what would run, and what retention would keep.
    """
    document = _read(_text(path), path) if path else None
    found = connect().preview(document, hours=hours, limit=limit, domain=domain)
    if as_json:
        output.document(found)
    else:
        results_policy.show_preview(found, points=points)


def _put_in_force(
    client: Client,
    document: PolicyDocument,
    text: str,
    comment: str,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    before = client.policies()
    changes = results_policy.changes(before.document or PolicyDocument(), document)
    found = None
    try:
        found = client.preview(document, hours=0, limit=0)
    except NotReachable as error:
        if dry_run:
            raise
        output.note(f"which domains gain or lose protection is not known: {error.message}")
    version: PolicyVersion = before
    if not dry_run:
        version = client.apply_policies(document, text, by=_who(), comment=comment)
    if as_json:
        output.document(
            {
                "dry_run": dry_run,
                "version": version.number,
                "new_version": version.number != before.number,
                **changes,
                "protected": found.protected if found else None,
                "gains": found.gains if found else None,
                "loses": found.loses if found else None,
                "warnings": found.warnings if found else [],
            }
        )
    else:
        results_policy.show_changes(changes, found, before, version, dry_run=dry_run)
    results_policy.warn(found)


def _text(path: str) -> str:
    from virtvault.policy_file import LARGEST

    try:
        with click.open_file(path, "rb") as file:
            raw: bytes = file.read(LARGEST + 1)
        return raw.decode()
    except OSError as error:
        raise InvalidRequest(
            f"Cannot read {path}: {error.strerror}.", "Mend its path or permissions."
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(
            f"{_where(path)}:{line}: is not UTF-8 text.", "Save it as UTF-8."
        ) from error


def _read(text: str, path: str) -> PolicyDocument:
    # Imported here: YAML takes longer to load than `virtvault --help` should run.
    from virtvault import policy_file

    return policy_file.read(text, _where(path))


def _where(path: str) -> str:
    return "stdin" if path == "-" else path


def _who() -> str:
    """Who applies, for the history: as far as this machine knows."""
    name = "unknown"
    with suppress(OSError, KeyError):  # no such user
        name = getpass.getuser()
    return f"{name}@{socket.gethostname()}"
