"""What the commands print: JSON documents, tables, errors, and numbers in people's units."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

__all__ = [
    "document",
    "table",
    "show_error",
    "error_document",
    "labels",
    "line",
    "note",
    "duration",
    "instant",
    "seconds_between",
    "size",
]

# Where no terminal limits the width, a table must not fold: `grep` and `awk` read lines.
PIPE_WIDTH = 2000


def document(value: Any) -> None:
    """The one JSON document on stdout: a model, a sequence of models, or JSON-able data."""
    from dataclasses import is_dataclass

    from virtvault import schemas

    def plain(one: Any) -> Any:
        return schemas.dump(one) if is_dataclass(one) else one

    listing = isinstance(value, list | tuple)
    data = [plain(one) for one in value] if listing else plain(value)
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def error_document(type_name: str, message: str, mend: str, exit_code: int) -> None:
    """An error as the one JSON document on stdout."""
    error = {"type": type_name, "message": message, "mend": mend, "exit_code": exit_code}
    document({"error": error})


def show_error(message: str, mend: str = "") -> None:
    """An error for people, on stderr: what happened, and indented what to do next."""
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_lines(message)}", err=True)
    if mend:
        click.echo(f"  {_lines(mend)}", err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str = "") -> None:
    """A table on stdout. A column whose name starts with ``>`` holds numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = list(rows)
    if not found and empty:
        click.echo(empty)
        return
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        justify: Any = "right" if name.startswith(">") else "left"
        made.add_column(name.removeprefix(">"), justify=justify, overflow="fold")
    for cells in found:
        # Text, not str: a domain may be called `[bold]`.
        made.add_row(*(Text(_lines(cell)) for cell in cells))
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as captured:
        console.print(made)
    for text in captured.get().splitlines():
        click.echo(text.rstrip())


def note(text: str) -> None:
    """What an operator should know besides, on stderr."""
    click.echo(f"{click.style('note:', fg='yellow', bold=True)} {_lines(text)}", err=True)


def line(text: str) -> str:
    """On one line, and without what a terminal would obey: not all of it comes from us."""
    return "".join(c if c.isprintable() else " " for c in text)


def _lines(text: str) -> str:
    """The same of a text that may have several lines."""
    return "\n".join(map(line, text.split("\n")))


def labels(found: Mapping[str, str]) -> str:
    """``tier=prod, team=web``."""
    return ", ".join(f"{name}={value}" for name, value in sorted(found.items()))


def size(count: float) -> str:
    """Bytes in binary units: ``1.0 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} PiB"


def duration(seconds: float) -> str:
    """``12.3 s`` below a minute, then ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def instant(text: str) -> str:
    """A time of the wire for people: ``2026-01-31 04:05:06 UTC``."""
    if not text:
        return "-"
    return f"{_parse(text):%Y-%m-%d %H:%M:%S} UTC"


def seconds_between(start: str, end: str) -> float:
    """Seconds from one time of the wire to another."""
    return (_parse(end) - _parse(start)).total_seconds()


def _parse(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
