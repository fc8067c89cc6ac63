"""Events in words and columns, and what a watcher makes of what QEMU may send."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from virtvault.cli import events as shown
from virtvault.cli.events import in_words, lines
from virtvault.models import Event
from virtvault.settings import Settings
from workers import events
from workers.events import Watcher

AT = "2026-01-31T04:05:06.123Z"
JOB = "virtvault-0f6b1a2c-vda"


class Domain:
    """What a callback reads of a virDomain: both are local to the object."""

    def name(self) -> str:
        return "db1"

    def UUIDString(self) -> str:
        return "11111111-2222-4333-8444-555555555555"


def event(name: str, data: dict[str, Any], **fields: str) -> Event:
    return Event(AT, fields.get("host", "hv1"), name, fields.get("domain", "db1"), "x", data)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("JOB_STATUS_CHANGE", {"status": "concluded", "id": JOB}, f"{JOB} concluded"),
        (
            "BLOCK_JOB_COMPLETED",
            {"device": JOB, "type": "backup", "speed": 0, "len": 2**30, "offset": 2**20}
            | {"error": "No space left on device"},
            f"{JOB} backup No space left on device 1.0 MiB of 1.0 GiB",
        ),
        (
            "BLOCK_IO_ERROR",
            {"device": "", "node-name": "libvirt-1-format", "operation": "write"}
            | {"action": "stop", "nospace": True, "reason": "No space left on device"},
            "libvirt-1-format write stop No space left on device nospace=true",
        ),
        ("SHUTDOWN", {"guest": False, "reason": "host-signal"}, "host-signal guest=false"),
        ("stopped", {"detail": "crashed"}, "crashed"),
        ("STOP", {}, ""),
        ("WATCHER_CONNECTED", {"missing_since": ""}, "started; events before this may be missing"),
        (
            "WATCHER_CONNECTED",
            {"missing_since": AT},
            "events since 2026-01-31 04:05:06.123 may be missing",
        ),
        ("WATCHER_MISSED", {"count": 33}, "33 events up to this time are missing"),
        ("BLOCK_JOB_ERROR", {"error": "a\nb\x1b[2J", "x\n": [1]}, "a b [2J x =[1]"),
    ],
)
def test_data_in_words(name: str, data: dict[str, Any], words: str) -> None:
    assert in_words(event(name, data)) == words


def test_each_event_is_a_line_in_columns_that_grow_with_what_comes() -> None:
    found = [
        event("STOP", {}),
        event("JOB_STATUS_CHANGE", {"id": "x" * 200}, domain="a-long-name-of-a-domain"),
        event("stopped", {"detail": "crashed"}, domain="evil\n\x1b[2J"),
    ]
    header, *rows = lines(found, (23, 8, 12, 20))
    assert header.split() == ["TIME", "(UTC)", "HOST", "DOMAIN", "EVENT", "DETAILS"]
    assert rows[0] == "2026-01-31 04:05:06.123  hv1       db1           STOP"
    assert rows[1].endswith("  " + "x" * 200)
    assert rows[1].index("JOB_") == rows[2].index("stopped")
    assert all(row.isprintable() for row in rows)


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_in_a_terminal_no_line_is_wider_than_it(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(shown.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    details = {"id": JOB, "status": "concluded", "error": "no such thing " * 9}
    (_, row) = lines([event("JOB_STATUS_CHANGE", details)], (23, 3, 3, 17))
    assert max(map(len, row.splitlines())) <= columns
    assert " ".join(row.split()).endswith(f"{JOB} concluded {details['error'].strip()}")


def test_errors_of_one_disk_are_thinned_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    watcher = Watcher(Settings(host="hv1"))

    def fail(node: str) -> None:
        details = f'{{"node-name": "{node}", "operation": "write", "reason": "EIO"}}'
        watcher._said(None, Domain(), "BLOCK_IO_ERROR", 1769832306, 123456, details, 0)

    for _ in range(5000):
        fail("vda-node")
    fail("vdb-node")
    now[0] += events.ERROR_INTERVAL
    fail("vda-node")
    found = watcher.take(0)
    assert [e.data["node-name"] for e in found] == ["vda-node", "vdb-node", "vda-node"]
    assert [e.data.get("not_shown") for e in found] == [None, None, 4999]
    assert {e.at for e in found} == {"2026-01-31T04:05:06.123Z"}


@pytest.mark.parametrize("details", [None, "", "{", "[1]", '"text"'])
def test_what_qemu_sends_with_an_event_need_not_be_an_object(details: str | None) -> None:
    watcher = Watcher(Settings(host="hv1"))
    watcher._said(None, Domain(), "STOP", -1, 0, details, 0)
    watcher._lived(None, Domain(), 4711, 4712, 0)
    said, lived = watcher.take(0)
    assert said.data in ({}, {"details": details})
    # -1: QEMU could not read its clock.
    assert said.at > "2026"
    assert (lived.event, lived.data) == ("event 4711", {"detail": "detail 4712"})


def test_a_registration_that_was_replaced_is_not_listened_to() -> None:
    watcher = Watcher(Settings(host="hv1"))
    watcher._said(None, Domain(), "STOP", -1, 0, None, 7)
    watcher._lived(None, Domain(), 2, 0, 7)
    assert watcher.take(0) == []


def test_libvirts_words() -> None:
    assert dict(events.LIFECYCLE.values())["stopped"][2] == "crashed"
    assert [events.LIFECYCLE[number][0] for number in range(6)] == [
        *("defined", "undefined", "started", "suspended", "resumed", "stopped")
    ]
