"""``virtvault events``: what QEMU and libvirt said of the domains."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option
from virtvault.models import WATCHER_CONNECTED, WATCHER_MISSED, Event

__all__ = ["events", "in_words", "lines"]

COLUMNS = ("TIME (UTC)", "HOST", "DOMAIN", "EVENT")
# Widths to begin with where the rows are not known yet; the longest event usual is 20 long.
USUAL = (23, 8, 12, 20)
# Characters a terminal must have left for the details; with less they go below the event.
ROOM = 32
# Data that says by itself what it is, in this order; the rest is shown as key=value.
PLAIN = (
    *("id", "device", "node-name", "type", "operation", "action", "status", "detail"),
    *("reason", "msg", "error", "details"),
)


@click.command()
@click.argument("domain", default="")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "--event",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only events of this name, in any case; shell patterns such as 'BLOCK_JOB_*'. "
    "May be given many times.",
)
@click.option("--host", default="", help="Only this hypervisor.")
@click.option(
    "--last",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="Begin with at most that many that were there before.",
)
@json_option
def events(
    domain: str, follow: bool, names: tuple[str, ...], host: str, last: int, as_json: bool
) -> None:
    """List events of DOMAIN (a name, a uuid, or host/name) or of all, newest last.

    Names in capitals are QEMU's: of jobs (BLOCK_JOB_COMPLETED, JOB_STATUS_CHANGE, ...), of disks
    (BLOCK_IO_ERROR, ...), and STOP, RESUME, SHUTDOWN. Others are libvirt's: defined, started,
    suspended, resumed, stopped, ...  WATCHER_CONNECTED, WATCHER_DISCONNECTED and WATCHER_MISSED
    tell where events may be missing.

    With --follow, --json prints one object per line.
    """
    found = connect().events(domain, names=names, host=host, last=last, follow=follow)
    if not follow:
        _show(list(found), as_json)
        return
    with contextlib.suppress(KeyboardInterrupt):
        for line in _json_lines(found) if as_json else lines(found, USUAL):
            click.echo(line)


def _show(found: Sequence[Event], as_json: bool) -> None:
    if as_json:
        output.document(found)
    elif not found:
        click.echo("No events.")
    else:
        rows = [COLUMNS, *map(_cells, found)]
        for line in lines(found, [max(map(len, column)) for column in zip(*rows, strict=True)]):
            click.echo(line)


def _json_lines(found: Iterable[Event]) -> Iterator[str]:
    from virtvault import schemas

    for event in found:
        yield json.dumps(schemas.dump(event), ensure_ascii=False)


def lines(found: Iterable[Event], widths: Sequence[int]) -> Iterator[str]:
    """A header, and each event in aligned columns of at least these ``widths``.

    In a pipe each event is one line, for `grep`; in a terminal long details are folded.
    """
    widths = list(widths)
    yield _row(COLUMNS, widths, "DETAILS")
    for event in found:
        cells = _cells(event)
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
        yield _row(cells, widths, in_words(event))


def _cells(event: Event) -> tuple[str, str, str, str]:
    when = event.at.replace("T", " ").removesuffix("Z")
    return when, _printable(event.host), _printable(event.domain) or "-", _printable(event.event)


def _row(cells: Sequence[str], widths: Sequence[int], details: str) -> str:
    start = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    if not sys.stdout.isatty():
        return f"{start}  {details}".rstrip()
    room = shutil.get_terminal_size().columns
    indent = len(start) + 2
    if indent + ROOM <= room:
        folded = textwrap.wrap(details, room - indent) or [""]
        return f"\n{'':<{indent}}".join([f"{start}  {folded[0]}".rstrip(), *folded[1:]])
    if len(start) + 2 + len(details) <= room:
        return f"{start}  {details}".rstrip()
    # Below the host, so that the times stand out.
    indent = widths[0] + 2
    folded = textwrap.wrap(details, max(room - indent, ROOM))
    return f"\n{'':<{indent}}".join([start.rstrip(), *folded])


def in_words(event: Event) -> str:
    """An event's data for people, on one line."""
    data = dict(event.data)
    if event.event == WATCHER_CONNECTED:
        since = str(data.get("missing_since") or "")
        if not since:
            return "started; events before this may be missing"
        since = since.replace("T", " ").removesuffix("Z")
        return f"events since {_printable(since)} may be missing"
    if event.event == WATCHER_MISSED:
        return f"{_printable(data.get('count'))} events up to this time are missing"
    parts = [_printable(data.pop(key)) for key in PLAIN if data.get(key) not in (None, "")]
    done, total = data.pop("offset", None), data.pop("len", None)
    if isinstance(done, int) and isinstance(total, int):
        parts.append(f"{output.size(done)} of {output.size(total)}")
    parts += [
        f"{_printable(key)}={_printable(value)}"
        for key, value in data.items()
        # A job without a limit has speed 0.
        if value not in (None, "") and (key, value) != ("speed", 0)
    ]
    return " ".join(parts)


def _printable(value: Any) -> str:
    """On one line, and without what a terminal would obey: not all of it comes from us."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else " " for c in text)
