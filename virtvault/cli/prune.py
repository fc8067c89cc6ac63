"""``virtvault prune`` and ``merge``: remove points, and never what a kept one needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from virtvault.cli import output, results_prune
from virtvault.cli.follow import finish
from virtvault.cli.options import connect, detach_option, json_option, speed_option
from virtvault.cli.progress import progress_display
from virtvault.models import PruneResult, RetentionRules

if TYPE_CHECKING:
    from virtvault.client import Client

__all__ = ["merge", "prune"]

SPANS = {"h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
RULES = ("hour", "day", "week", "month", "year")


def _span(text: str) -> int:
    """Seconds from ``14d``, ``36h``, ``2w`` or ``1y``."""
    match = re.fullmatch(r"([0-9]{1,6})([hdwy])", text, re.I)
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text!r} is no time; write 36h, 14d, 2w or 1y.")
    return int(match[1]) * SPANS[match[2].lower()]


def _rules(command: Any) -> Any:
    """The rules' options, as listed in the help from ``--keep-last`` to ``--keep-within``."""
    made = []
    count = click.IntRange(min=1)
    made.append(click.option("--keep-last", type=count, metavar="N", help="The newest N points."))
    for unit, rule in zip(RULES, ("hourly", "daily", "weekly", "monthly", "yearly"), strict=True):
        made.append(
            click.option(
                f"--keep-{rule}",
                type=count,
                metavar="N",
                help=f"The newest of each of the last N {unit}s that have any.",
            )
        )
    made.append(
        click.option(
            "--keep-within", type=_span, metavar="TIME", help="All not older, such as 36h or 14d."
        )
    )
    for option in reversed(made):
        command = option(command)
    return command


@click.command()
@click.argument("domain", default="")
@_rules
@click.option("--repository", default="", help="Default: looked up, where there is but one.")
@click.option("--host", default="", help="The hypervisor that prunes. Default: looked up.")
@click.option("--dry-run", is_flag=True, help="Only say what would be kept and removed, and why.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@speed_option
@detach_option
@json_option
def prune(
    domain: str,
    repository: str,
    host: str,
    dry_run: bool,
    yes: bool,
    speed: int,
    detach: bool,
    as_json: bool,
    **rules: int | None,
) -> None:
    """Remove the points of DOMAIN (or of all) that no rule keeps.

    A point is kept where any rule wants it; hours to years are UTC's, weeks ISO's, and only those
    with points count. Protected points and the newest always stay. What kept points need of a
    removed one is merged into them. DOMAIN is a name or uuid, and may be gone from libvirt.
    """
    wanted = {name.removeprefix("keep_"): count for name, count in rules.items() if count}
    if not wanted:
        raise click.UsageError("Say what to keep: at least one --keep-… option, as --keep-daily 7.")
    options = {
        "host": host,
        "repository": repository,
        "domain": domain,
        "rules": RetentionRules(**wanted),
        "speed": speed,
    }
    what = f"prune of {domain or 'all domains'}"
    _carry_out(options, what, dry_run=dry_run, yes=yes, detach=detach, as_json=as_json)


@click.command()
@click.argument("point")
@click.option("--host", default="", help="The hypervisor that merges. Default: looked up.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@speed_option
@detach_option
@json_option
def merge(
    point: str, host: str, dry_run: bool, yes: bool, speed: int, detach: bool, as_json: bool
) -> None:
    """Remove POINT, and merge into the points that stand on it what they need of it."""
    options = {"host": host, "points": (point,), "speed": speed}
    what = f"merge of {point}"
    _carry_out(options, what, dry_run=dry_run, yes=yes, detach=detach, as_json=as_json)


def _carry_out(
    options: dict[str, Any], what: str, *, dry_run: bool, yes: bool, detach: bool, as_json: bool
) -> None:
    """Prune; unless told not to, show first what would go, and ask."""
    if not (dry_run or yes) and (as_json or detach):
        raise click.UsageError("Nobody can be asked: add --yes, or --dry-run to only look.")
    client = connect()
    if not (dry_run or yes) and not _agreed(client, options):
        return
    handle = client.prune(**options, dry_run=dry_run)
    finish(handle, what, detach=detach, as_json=as_json)


def _agreed(client: Client, options: dict[str, Any]) -> bool:
    """Show what a prune would do, and ask whether it shall.

    :raises click.Abort: it shall not.
    """
    with progress_display() as display:
        plan = client.prune(**options, dry_run=True).wait(on_progress=display)
    assert isinstance(plan, PruneResult)
    results_prune.show(plan)
    if not plan.removed:
        return False
    size = output.size(sum(point.freed for point in plan.removed))
    click.confirm(f"Remove {len(plan.removed)} points ({size})?", abort=True)
    return True
