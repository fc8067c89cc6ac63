"""The end of a backup or restore, and a point, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from virtvault.cli import output, results_prune, results_restore, results_serve, results_verify
from virtvault.models import (
    BackupResult,
    ExportResult,
    Point,
    PointDisk,
    PointStatus,
    Progress,
    PruneResult,
    RestoreResult,
    Result,
    ServeResult,
    VerifyResult,
)

__all__ = ["show_open", "show_point", "show_result", "state"]


def show_result(result: Result) -> None:
    """What was done, disk by disk."""
    if isinstance(result, RestoreResult):
        results_restore.show(result)
    elif isinstance(result, ExportResult):
        _show_export(result)
    elif isinstance(result, VerifyResult):
        results_verify.show(result)
    elif isinstance(result, ServeResult):
        results_serve.show(result)
    elif isinstance(result, PruneResult):
        results_prune.show(result)
    else:
        _show_backup(result)


def state(status: PointStatus | None) -> str:
    """How a point is, in few words."""
    if status is None:
        return "unknown"
    words = "verified good" if (status.state, status.verdict) == ("ok", "good") else status.state
    return f"{words}, protected" if status.protected else words


def show_point(point: Point, status: PointStatus | None = None) -> None:
    """All of a point's manifest that tells an operator something, and how it is now."""
    facts = {
        "point": point.id,
        "domain": f"{point.domain} ({point.uuid}), {point.state}",
        "host": point.host,
        "repository": f"{point.repository} ({point.repository_id})",
        "instant": output.instant(point.instant),
        "finished": output.instant(point.finished),
        "taken": _how(point),
        **_now(status),
        "task": point.task_id,
        "versions": ", ".join(f"{name} {v}" for name, v in sorted(point.versions.items())),
    }
    if point.merged:
        facts["merged"] = ", ".join(point.merged)
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {value}")
    click.echo()
    output.table(
        ("DISK", "SYNC", ">SIZE", ">STORED", "PARENT", "WHY", "SOURCE"),
        (
            (
                disk.target,
                disk.sync,
                output.size(disk.virtual_size),
                output.size(disk.stored),
                disk.parent or "-",
                disk.reason or "-",
                disk.source,
            )
            for disk in point.disks
        ),
    )
    for disk in point.disks:
        for image in disk.backing:
            click.echo(f"{disk.target} needs {image.path} ({image.format}), unchanged")
    _show_rest(point.skipped, point.notes)


def _now(status: PointStatus | None) -> dict[str, str]:
    said = {"state": state(status)}
    if status is not None and status.why:
        said["state"] += f": {status.why}"
    if status is not None and status.verified:
        said["verified"] = f"{status.verdict}, {output.instant(status.verified)}"
    if status is not None and status.protected:
        said["protected"] = status.protected
    return said


def _show_backup(result: BackupResult) -> None:
    click.echo(
        f"point {click.style(result.point, bold=True)} of {result.domain} on {result.host}, "
        f"repository {result.repository}"
    )
    took = output.duration(output.seconds_between(result.started, result.finished))
    click.echo(f"{output.instant(result.instant)}, {_how(result)}, took {took}")
    _show_disks(result.disks)
    _show_rest(result.skipped, result.notes)


def show_open(progress: Progress, err: bool = False) -> None:
    """Where an open export is read from, and how it is closed."""
    click.echo(f"open, read-only, as of {output.instant(progress.instant)}:", err=err)
    width = max(map(len, progress.exports))
    for target, url in sorted(progress.exports.items()):
        click.echo(f"  {target:<{width}}  {url}", err=err)
    click.echo(f"Close it with: virtvault cancel {progress.task_id}", err=err)


def _show_export(result: ExportResult) -> None:
    took = output.duration(output.seconds_between(result.instant, result.finished))
    click.echo(
        f"export of {result.domain} on {result.host} as of {output.instant(result.instant)} "
        f"closed after {took}"
    )
    output.table(
        ("DISK", ">SIZE", ">SCRATCH USED"),
        ((e.target, output.size(e.virtual_size), output.size(e.scratch)) for e in result.exports),
    )
    _show_rest(result.skipped, result.notes)


def _show_disks(disks: Sequence[PointDisk]) -> None:
    output.table(
        ("DISK", "DONE", ">SIZE", ">TRANSFERRED", ">STORED", "WHY"),
        (
            (
                disk.target,
                disk.sync,
                output.size(disk.virtual_size),
                output.size(disk.transferred),
                output.size(disk.stored),
                disk.reason or "-",
            )
            for disk in disks
        ),
    )


def _how(made: Point | BackupResult) -> str:
    """Consistency, and what it cost the guest."""
    parts = [made.consistency, f"guest paused {made.paused_ms:.1f} ms"]
    if made.frozen_ms:
        parts.append(f"file systems frozen {made.frozen_ms:.1f} ms")
    if not made.isolated:
        parts.append("not isolated: faults of the backup could reach the guest")
    return ", ".join(parts)


def _show_rest(skipped: Mapping[str, str], notes: Sequence[str]) -> None:
    for target, why in skipped.items():
        click.echo(f"{click.style('skipped', fg='yellow')} {target}: {why}")
    for note in notes:
        click.echo(f"note: {note}")
