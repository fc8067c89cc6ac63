"""``virtvault runs`` and ``virtvault alerts``: what ran, and what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from marshmallow import ValidationError

from virtvault.cli import output
from virtvault.cli.options import connect, json_option
from virtvault.models import RunInfo
from virtvault.moments import written
from virtvault.schemas.units import Duration

__all__ = ["alerts", "runs"]


class _Ago(click.ParamType[str]):
    """A span such as ``24h``, as the moment that long ago: UTC, as on the wire."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            seconds = Duration().deserialize(value)
        except ValidationError as error:
            self.fail(f"{value!r} {error.messages[0]}.", param, ctx)
        return written(datetime.now(UTC) - timedelta(seconds=seconds))


@click.command()
@click.argument("domain", default="")
@click.option(
    "--since", type=_Ago(), default="24h", show_default=True, help="Those that ended since then."
)
@click.option("--failed", is_flag=True, help="Only those that failed.")
@click.option("--policy", default="", help="Only runs of this policy.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@json_option
def runs(domain: str, since: str, failed: bool, policy: str, limit: int, as_json: bool) -> None:
    """List long tasks that ended, and those at work, newest first; of DOMAIN (name or uuid)."""
    host, _, name = domain.rpartition("/")
    found = [
        run
        for run in connect().runs(since=since, domain=name, policy=policy, limit=limit)
        if host in ("", run.host) and (not failed or run.state == "failed")
    ]
    if as_json:
        output.document(found)
        return
    output.table(
        ("STARTED", "STATE", "KIND", "DOMAIN", "HOST", ">TOOK", ">STORED", "POLICY", "TASK"),
        (
            (
                output.instant(run.started),
                run.state,
                f"{run.kind} {run.sync}".strip(),
                run.domain or run.uuid or "-",
                run.host,
                output.duration(run.seconds) if run.finished else "-",
                output.size(run.stored) if run.stored else "-",
                run.policy or "by hand",
                run.task_id,
            )
            for run in found
        ),
        empty="No such runs.",
    )
    _errors(found)


def _errors(found: Sequence[RunInfo]) -> None:
    """Each error once, newest first."""
    same: dict[tuple[str, str], list[str]] = {}
    for run in found:
        if run.state == "failed":
            same.setdefault((run.error, run.mend), []).append(run.domain or run.task_id)
    for (error, mend), names in same.items():
        distinct = list(dict.fromkeys(names))
        more = f" and {len(distinct) - 5} more" if len(distinct) > 5 else ""
        click.echo(f"\n{output.line(', '.join(distinct[:5]))}{more}: {output.line(error)}")
        if mend:
            click.echo(f"  {output.line(mend)}")


@click.command()
@click.option("--since", type=_Ago(), help="Also those that closed since then: 24h.")
@json_option
@click.pass_context
def alerts(ctx: click.Context, since: str | None, as_json: bool) -> None:
    """List what is wrong now, and what is told to those named in [notify].

    Exits with 1 where anything is.
    """
    found = connect().alerts(closed_since=since or "")
    if as_json:
        output.document(found)
    elif not found:
        click.echo("No alerts.")
    for alert in () if as_json else found:
        over = f", over since {output.instant(alert.closed)}" if alert.closed else ""
        kind = click.style(alert.kind, fg=None if alert.closed else "red", bold=True)
        click.echo(f"{kind}  since {output.instant(alert.opened)}{over}")
        click.echo(f"  {output.line(alert.detail)}")
        if alert.mend and not alert.closed:
            click.echo(f"  {output.line(alert.mend)}")
    if any(not alert.closed for alert in found):
        ctx.exit(1)
