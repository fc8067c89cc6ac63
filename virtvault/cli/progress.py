"""A task's progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from virtvault.cli.output import duration, size
from virtvault.models import DiskProgress, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["Lines", "progress_display"]

# Seconds between two plain lines of the same phase: a log of hours stays readable.
LINE_SECONDS = 2.0
# States of a block job that explain why it does not get on; the others go without saying.
UNUSUAL = {"paused", "standby", "aborting"}


@contextmanager
def progress_display() -> Iterator[Callable[[Progress], None]]:
    """What to call with each sample, for as long as the context lasts."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.fields[label]}", markup=False),
        # Takes what width is left: the numbers matter more.
        BarColumn(bar_width=None),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=sys.stderr),
        # Gone at the end: the result says it all.
        transient=True,
    )
    with bars:
        yield _Live(bars)


class Lines:
    """One line at each change of phase, and percents at most every two seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase = ""
        self._last = ""
        self._at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        line = f"{progress.phase}: {numbers(progress)}" if progress.total else progress.phase
        if progress.phase == self._phase and (line == self._last or now - self._at < LINE_SECONDS):
            return
        self._phase, self._last, self._at = progress.phase, line, now
        click.echo(line, err=True)


class _Live:
    """A bar for the whole with phase, rate and ETA, and one for each disk."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._whole = bars.add_task("", total=None, label="waiting", note="")
        self._disks: dict[str, TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        self._bars.update(
            self._whole,
            total=progress.total or None,
            completed=progress.done,
            label=progress.phase,
            note=numbers(progress) if progress.total else "",
        )
        for disk in progress.disks:
            if disk.target not in self._disks:
                self._disks[disk.target] = self._bars.add_task("", label="", note="")
            self._bars.update(
                self._disks[disk.target],
                # An unchanged disk has nothing to do, and that is all of it.
                total=disk.total or 1,
                completed=disk.done if disk.total else 1,
                label=f"  {disk.target}",
                note=_disk_numbers(disk),
            )


def numbers(progress: Progress) -> str:
    """``12.3 %, 1.2 GiB of 10.0 GiB, 100.0 MiB/s, 1:23 left``."""
    if progress.exports:
        return f"scratch {size(progress.done)} of {size(progress.total)}"
    parts = [
        f"{progress.percent:.1f} %",
        f"{size(progress.done)} of {size(progress.total)}",
    ]
    if progress.rate > 0 and progress.done < progress.total:
        parts.append(f"{size(progress.rate)}/s")
    if progress.eta >= 0 and progress.done < progress.total:
        parts.append(f"{duration(progress.eta)} left")
    return ", ".join([*parts, *sorted({d.status for d in progress.disks} & UNUSUAL)])


def _disk_numbers(disk: DiskProgress) -> str:
    if not disk.total:
        return f"nothing to copy, {disk.status}"
    percent = min(100.0, 100.0 * disk.done / disk.total)
    return f"{percent:.1f} %, {size(disk.done)} of {size(disk.total)}, {disk.status}"
