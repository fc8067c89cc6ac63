"""The end of a prune for people."""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.models import PruneResult

__all__ = ["show"]


def show(result: PruneResult) -> None:
    """What was done or would be, the newest point of each domain first, and why."""
    remove = "REMOVE" if result.dry_run else "REMOVED"
    domains = {p.point: p.domain for p in result.kept}
    domains |= {p.point: p.domain for p in result.removed}
    lines = [(p.point, "KEEP", "; ".join(p.reasons)) for p in result.kept]
    lines += [
        (
            p.point,
            remove,
            f"merged into {', '.join(p.into)}"
            if p.into
            else f"{output.size(p.freed)}, no kept point needs it",
        )
        for p in result.removed
    ]
    lines.sort(reverse=True)
    lines.sort(key=lambda line: domains[line[0]])
    lines += [(point, "POSTPONED", why) for point, why in result.postponed.items()]
    output.table(
        ("", "POINT", "DOMAIN", "WHY"),
        ((what, point, domains.get(point, ""), why) for point, what, why in lines),
        empty="There are no points.",
    )
    freed = output.size(sum(p.freed for p in result.removed))
    would = "would be removed" if result.dry_run else "removed"
    counts = f"{_points(len(result.kept))} kept, {_points(len(result.removed))} {would} ({freed})"
    if result.postponed:
        counts += f", {len(result.postponed)} postponed: the next prune tries them again"
    took = output.duration(output.seconds_between(result.started, result.finished))
    click.echo(f"{counts}; repository {result.repository} on {result.host}, took {took}")


def _points(count: int) -> str:
    return f"{count} point" if count == 1 else f"{count} points"
