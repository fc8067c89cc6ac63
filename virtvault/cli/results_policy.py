"""What ``virtvault policy`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any

import click

from virtvault.cli import output
from virtvault.models import (
    KINDS,
    Limits,
    Policy,
    PolicyDocument,
    PolicyVersion,
    Preview,
    RetentionRules,
    Schedule,
    Selector,
)

__all__ = ["changes", "show_changes", "show_history", "show_list", "show_policy", "show_preview"]

UNITS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
# Names that are written out of what may be a long list.
NAMED = 10
BAR = 40


def changes(before: PolicyDocument, after: PolicyDocument) -> dict[str, Any]:
    """Names of policies that are ``added``, ``removed``; ``changed`` ones with their fields."""
    old = {policy.name: policy for policy in before.policies}
    new = {policy.name: policy for policy in after.policies}
    changed = {
        name: [
            f.name for f in fields(Policy) if getattr(policy, f.name) != getattr(old[name], f.name)
        ]
        for name, policy in new.items()
        if name in old and policy != old[name]
    }
    return {
        "added": [name for name in new if name not in old],
        "edited": changed,
        "removed": [name for name in old if name not in new],
        "reordered": [n for n in old if n in new] != [n for n in new if n in old],
        "limits": before.limits != after.limits,
    }


def show_changes(
    changed: Mapping[str, Any],
    found: Preview | None,
    before: PolicyVersion,
    version: PolicyVersion,
    *,
    dry_run: bool,
) -> None:
    """What is different from the version before."""
    for name in changed["added"]:
        click.echo(f"  + {name}")
    for name, which in changed["edited"].items():
        click.echo(f"  ~ {name}: {', '.join(which)}")
    for name in changed["removed"]:
        click.echo(f"  - {name}")
    if changed["limits"]:
        click.echo("  ~ limits over all policies")
    if changed["reordered"]:
        click.echo("  ~ their order")
    if not any(changed.values()):
        click.echo("  no policy changes")
    if found is not None:
        click.echo(
            f"protected: {_count(found.protected)} ({len(found.gains)} more, "
            f"{len(found.loses)} no longer); unprotected: {len(found.unprotected)}"
        )
    if dry_run:
        click.echo(f"nothing was changed: version {before.number} stays in force")
    elif version.number == before.number:
        click.echo(f"version {version.number} is in force already")
    else:
        click.echo(f"version {version.number} is in force")


def warn(found: Preview | None) -> None:
    """On stderr: what an operator should look at."""
    if found is None:
        return
    if found.loses:
        _warning(f"protection is LOST by {_count(len(found.loses))}: {_named(found.loses)}")
    for text in found.warnings:
        _warning(text)


def show_list(version: PolicyVersion) -> None:
    """One line a policy."""
    document = version.document or PolicyDocument()
    output.table(
        ("POLICY", "DOMAINS", "SCHEDULE", "RPO", "KEEP", "REPOSITORY", ">PRIORITY", "STATE"),
        (
            (
                one.name,
                selector(one.select),
                schedule(one.schedule),
                span(one.rpo) if one.rpo else "-",
                retention(one.retention),
                one.repository or "(default)",
                str(one.priority),
                "enabled" if one.enabled else "disabled",
            )
            for one in document.policies
        ),
        empty="No policies.",
    )


def show_policy(one: Policy) -> None:
    """All of one policy, its defaults too."""
    lines = {
        "domains": selector(one.select),
        "without": selector(one.exclude) if one.exclude != Selector() else "",
        "disks": ", ".join(one.disks) or "all",
        "repository": one.repository or "the host's default",
        "backup": schedule(one.schedule),
        "window": span(_window(one.schedule)),
        "if late": {"run": "run it all the same", "skip": "skip it"}[one.late],
        "sync": one.sync,
        "full every": _full_every(one),
        "rpo": span(one.rpo) if one.rpo else "none",
        "keep": retention(one.retention),
        "prune": schedule(one.prune) if one.prune else "",
        "verify": schedule(one.verify) if one.verify else "never",
        "boot test": schedule(one.boot_test) if one.boot_test else "never",
        "freeze": one.freeze,
        "speed": f"{output.size(one.speed)}/s per disk" if one.speed else "no limit",
        "priority": str(one.priority),
        "at a time": _limits(one.limits),
    }
    click.echo(f"{one.name}{'' if one.enabled else ' (disabled)'}")
    for name, value in lines.items():
        if value:
            click.echo(f"  {name:<11} {value}")


def show_limits(limits: Limits) -> None:
    """The limits that hold over all policies together."""
    click.echo(f"over all policies at a time: {_limits(limits)}")


def show_history(versions: Sequence[PolicyVersion]) -> None:
    """One line a version."""
    output.table(
        (">VERSION", "APPLIED", "BY", ">POLICIES", "COMMENT"),
        (
            (str(v.number), output.instant(v.applied), v.by, str(v.policies), v.comment)
            for v in versions
        ),
        empty="No policies were applied yet.",
    )


def show_preview(found: Preview, *, points: bool) -> None:
    """Domains, the timeline by hours, the runs, and what retention keeps."""
    output.table(
        ("DOMAIN", "HOST", "POLICIES", "NOT HOLDING", ">KEPT", ">REMOVED"),
        (
            (
                one.domain,
                one.host,
                ", ".join(one.policies),
                ", ".join(one.shadowed) or "-",
                str(len(one.kept)) if one.kept or one.removed else "-",
                str(len(one.removed)) if one.kept or one.removed else "-",
            )
            for one in found.domains
        ),
        empty="No domain is protected." if not found.protected else "",
    )
    if found.protected > len(found.domains) > 0:
        click.echo(f"… and {found.protected - len(found.domains)} more")
    for one in found.domains:
        for name, why in one.shadowed.items():
            click.echo(output.line(f"{one.host}/{one.domain}: {name} does not hold: {why}"))
        for id_, reasons in (*one.kept.items(), *one.removed.items()) if points else ():
            word = "keep" if id_ in one.kept else "remove"
            said = f"{one.host}/{one.domain}: {word} {id_}: {'; '.join(reasons)}"
            click.echo(output.line(said))
    if found.unprotected:
        click.echo(f"\nUnprotected: {output.line(_named(found.unprotected))}")
    if found.hours:
        _timeline(found)
    for text in found.warnings:
        _warning(text)


def _timeline(found: Preview) -> None:
    click.echo(
        f"\nThe next {found.hours} h from {output.instant(found.at)}: {found.total_runs} runs"
    )
    totals = [sum(counts) for counts in zip(*found.per_hour.values(), strict=True)]
    begin, most = datetime.fromisoformat(found.at), max(totals, default=0)
    for hour, total in enumerate(totals):
        if total:
            parts = ", ".join(
                f"{found.per_hour[kind][hour]} {kind.replace('_', ' ')}"
                for kind in KINDS
                if kind in found.per_hour and found.per_hour[kind][hour]
            )
            bar = "█" * max(1, round(BAR * total / most))
            click.echo(f"  {begin + timedelta(hours=hour):%m-%d %H:%M} {total:>7}  {bar}  {parts}")
    if found.runs:
        click.echo("")
        output.table(
            ("AT", "KIND", "DOMAIN", "HOST", "POLICY", "REPOSITORY"),
            (
                (
                    output.instant(run.at),
                    run.kind.replace("_", " "),
                    run.domain,
                    run.host,
                    run.policy,
                    run.repository or "(default)",
                )
                for run in found.runs
            ),
        )
        if found.total_runs > len(found.runs):
            click.echo(f"… and {found.total_runs - len(found.runs)} more (--limit)")


# -- in words -------------------------------------------------------------------------------------


def selector(one: Selector) -> str:
    """``name web-* on hv-1, tier=gold``."""
    parts = []
    if one.names:
        parts.append(" ".join(one.names))
    if one.uuids:
        parts.append(" ".join(one.uuids))
    if one.hosts:
        parts.append(f"on {' '.join(one.hosts)}")
    if one.labels:
        parts.append(output.labels(one.labels))
    return ", ".join(parts)


def schedule(one: Schedule) -> str:
    """``0 2 * * * Europe/Vienna`` or ``every 6h``."""
    return f"every {span(one.every)}" if one.every else f"{one.cron} {one.timezone}"


def retention(rules: RetentionRules) -> str:
    """``daily 7, within 2d``."""
    given = {name: value for name, value in asdict(rules).items() if value}
    words = [f"{n} {span(v) if n == 'within' else v}" for n, v in given.items()]
    return ", ".join(words) or "all"


def span(seconds: int) -> str:
    """``1d12h``."""
    parts = []
    for unit, size in UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _window(one: Schedule) -> int:
    return one.window or one.every or 3600


def _full_every(one: Policy) -> str:
    every = one.full_every
    words = [
        f"{every.points} points" if every.points else "",
        f"{every.days} days" if every.days else "",
    ]
    return " or ".join(filter(None, words)) or "only where it must be"


def _limits(limits: Limits) -> str:
    given = {name.replace("_", " "): count for name, count in asdict(limits).items() if count}
    return ", ".join(f"{count} {name}" for name, count in given.items()) or "any"


def _count(domains: int) -> str:
    return f"{domains} domain{'s' * (domains != 1)}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _warning(text: str) -> None:
    word = click.style("warning:", fg="yellow", bold=True)
    click.echo(f"{word} {output.line(text)}", err=True)
