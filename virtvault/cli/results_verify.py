"""The end of a verify for people."""

from __future__ import annotations

import click

from virtvault.cli import output
from virtvault.models import Verdict, VerifyResult

__all__ = ["show"]

COLOURS = {"good": "green", "bad": "red", "unproven": "yellow"}


def show(result: VerifyResult) -> None:
    """What was found, point by point, and what stands on what is bad."""
    bad = [verdict for verdict in result.verdicts if verdict.verdict == "bad"]
    took = output.duration(output.seconds_between(result.started, result.finished))
    summary = f"{len(bad)} of {len(result.verdicts)} bad" if bad else "none bad"
    points = "1 point" if len(result.verdicts) == 1 else f"{len(result.verdicts)} points"
    click.echo(
        f"verified {points} in repository {result.repository} on {result.host}, took {took}: "
        f"{click.style(summary, fg='red' if bad else 'green', bold=True)}"
    )
    output.table(
        ("POINT", "VERDICT", "DISKS", ">READ BACK", "BOOT", "SOURCE"),
        (
            (
                verdict.point,
                verdict.verdict,
                " ".join(f"{disk.target}:{disk.verdict}" for disk in verdict.disks) or "-",
                output.size(sum(disk.compared for disk in verdict.disks)),
                _boot(verdict),
                _source(verdict),
            )
            for verdict in result.verdicts
        ),
    )
    for verdict in result.verdicts:
        _show_why(verdict)
    if any(disk.verdict == "bad" for verdict in bad for disk in verdict.disks):
        click.echo("Restore refuses these points, and no backup builds on them any more.")


def _show_why(verdict: Verdict) -> None:
    said = click.style(verdict.verdict, fg=COLOURS.get(verdict.verdict))
    if verdict.detail:
        click.echo(f"{said} {verdict.point}: {verdict.detail}")
    if verdict.breaks:
        click.echo(f"  on it stand {', '.join(verdict.breaks)}")
    if verdict.boot is not None:
        booted = verdict.boot.booted
        word = click.style("booted" if booted else "did not boot", fg="green" if booted else "red")
        click.echo(f"{word} {verdict.point}: {verdict.boot.evidence}")
        if verdict.boot.screenshot:
            click.echo(f"  {verdict.boot.screenshot} beside its manifest shows the screen")


def _boot(verdict: Verdict) -> str:
    if verdict.boot is None:
        return "-"
    return f"yes, {output.duration(verdict.boot.seconds)}" if verdict.boot.booted else "no"


def _source(verdict: Verdict) -> str:
    if verdict.source is None:
        return "-"
    wrong = len(verdict.source.differing)
    return (
        f"{wrong} of {verdict.source.samples} differ"
        if wrong
        else (f"{verdict.source.samples} samples equal")
    )
