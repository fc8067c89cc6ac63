"""What recorded QEMU versions can do; see qemu_replies/README.md for where they come from."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from virtvault.errors import InvalidSettings, NotSupported
from workers.capabilities import MINIMUM, Capabilities, decide, parse_as_of, probe

RECORDED = Path(__file__).parent / "qemu_replies"

# What each has, read as a specification: every line adds to the one before it.
_2_12 = Capabilities(
    version=(2, 11, 90),
    copy="drive-backup",
    isolation=False,
    merge="none",
    persistent=True,
    job_commands="block-job",
    keeps_jobs=True,
    flat=False,
    graph=False,
    x_perf=False,
    bitmap_flags=False,
    nbd_reconnect=False,
    block_exports=False,
)
_3_1 = replace(_2_12, version=(3, 0, 92), copy="blockdev-backup", job_commands="job")
_4_0 = replace(_3_1, version=(4, 0, 0), merge="same node", graph=True, bitmap_flags=True)
_4_2 = replace(_4_0, version=(4, 2, 0), merge="any node", nbd_reconnect=True)
_5_2 = replace(_4_2, version=(5, 2, 0), flat=True, block_exports=True)
_6_2 = replace(_5_2, version=(6, 2, 0), x_perf=True)
_7_0 = replace(_6_2, version=(7, 0, 0))
_7_2 = replace(_7_0, version=(7, 2, 22), isolation=True)
_10_1 = replace(_7_2, version=(10, 1, 0))
EXPECTED = {
    "2.12.0-rc0": _2_12,
    "3.1.0-rc2": _3_1,
    "4.0.0": _4_0,
    "4.2.0": _4_2,
    "5.2.0": _5_2,
    "6.2.0": _6_2,
    "7.0.0": _7_0,
    "7.2.22": _7_2,
    "10.1.0": _10_1,
}
# The release each is the recording of: a candidate's version reads as the release before it.
RELEASE = {name: tuple(map(int, name.split(".")[:2])) for name in EXPECTED}
AS_OF = [(2, 12), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2), (5, 0), (5, 2), (6, 0), (7, 0), (7, 1)]


class Recording:
    """The boundary to QEMU: a monitor that answers with what was recorded."""

    def __init__(self, replies: dict[str, Any]) -> None:
        self.replies = replies
        self.asked: list[str] = []

    @property
    def capabilities(self) -> Capabilities:
        return probe(self)

    def execute(self, command: str, **arguments: Any) -> Any:
        assert not arguments
        self.asked.append(command)
        return self.replies[command]

    def wait(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def recorded(name: str) -> dict[str, Any]:
    replies: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return replies


def decided(replies: dict[str, Any], as_of: tuple[int, int] | None = None) -> Capabilities:
    qemu = replies["query-version"]["qemu"]
    return decide(
        (qemu["major"], qemu["minor"], qemu["micro"]),
        [command["name"] for command in replies["query-commands"]],
        replies["query-qmp-schema"],
        as_of,
    )


def able(capabilities: Capabilities) -> dict[str, Any]:
    """All but what differs between any two QEMUs."""
    return asdict(replace(capabilities, version=(0, 0, 0), notes=()))


def rank(value: object) -> int:
    """How much a capability is, so that less can be told from more."""
    ordered = [("drive-backup", "blockdev-backup"), ("none", "same node", "any node")]
    for order in [*ordered, ("block-job", "job"), (False, True)]:
        if value in order:
            return order.index(value)
    raise AssertionError(f"{value!r} has no rank")


def test_every_recording_is_expected_to_be_something() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_qemu_can_do_what_its_answers_say(name: str) -> None:
    assert replace(decided(recorded(name)), notes=()) == EXPECTED[name]


@pytest.mark.parametrize("as_of", AS_OF, ids=lambda v: ".".join(map(str, v)))
@pytest.mark.parametrize("name", EXPECTED)
def test_as_of_only_takes_away(name: str, as_of: tuple[int, int]) -> None:
    whole, limited = decided(recorded(name)), decided(recorded(name), as_of)
    assert limited.version == whole.version
    less, more = able(limited), able(whole)
    for capability in less.keys() - {"version", "notes"}:
        assert rank(less[capability]) <= rank(more[capability]), capability


@pytest.mark.parametrize("as_of", EXPECTED)
@pytest.mark.parametrize("name", EXPECTED)
def test_treated_as_an_older_one_a_qemu_is_that_older_one(name: str, as_of: str) -> None:
    older = min(name, as_of, key=RELEASE.__getitem__)
    major, minor = RELEASE[as_of]
    assert able(decided(recorded(name), (major, minor))) == able(EXPECTED[older])


def test_a_version_says_nothing_where_the_answers_say_otherwise() -> None:
    backported = recorded("7.2.22")
    backported["query-version"]["qemu"] |= {"major": 4, "minor": 1}
    assert able(decided(backported)) == able(EXPECTED["7.2.22"])


def test_the_names_of_types_mean_nothing() -> None:
    text = json.dumps(recorded("7.2.22")["query-qmp-schema"])
    renamed = re.sub(r'"(\[?)(\d+)(\]?)"', lambda m: f'"{m[1]}{int(m[2]) + 1000}{m[3]}"', text)
    assert renamed != text
    replies = recorded("7.2.22") | {"query-qmp-schema": json.loads(renamed)}
    assert decided(replies) == decided(recorded("7.2.22"))


def test_options_are_those_of_the_command_that_copies() -> None:
    replies = recorded("7.2.22")
    schema = {entry["name"]: entry for entry in replies["query-qmp-schema"]}
    by_node = schema[schema["blockdev-backup"]["arg-type"]]
    by_node["members"] = [
        m for m in by_node["members"] if m["name"] not in ("bitmap", "x-perf", "auto-dismiss")
    ]
    capabilities = decided(replies)
    assert capabilities.copy == "drive-backup"
    assert capabilities.x_perf and capabilities.keeps_jobs


@pytest.mark.parametrize(
    ("lack", "note"),
    [
        ("on-cbw-error", "copy-before-write has no on-cbw-error"),
        ("cbw-timeout", "copy-before-write has no cbw-timeout"),
        ("copy-before-write", "no copy-before-write"),
        ("snapshot-access", "no snapshot-access"),
        ("qom-set", "no qom-set"),
        ("x-debug-query-block-graph", "no x-debug-query-block-graph"),
        ("block-dirty-bitmap-merge", "no merging of bitmaps across nodes"),
        ("bitmap", "no blockdev-backup with a bitmap"),
    ],
)
def test_without_any_one_of_its_parts_there_is_no_isolation(lack: str, note: str) -> None:
    text = json.dumps(recorded("7.2.22")).replace(f'"{lack}"', '"taken-away"')
    capabilities = decided(json.loads(text))
    assert not capabilities.isolation
    assert f"no isolation: {note} (QEMU 7.1)" in capabilities.notes


def test_people_are_told_what_is_missing_and_who_has_it() -> None:
    assert decided(recorded("7.2.22")).notes == ()
    assert decided(recorded("7.0.0")).notes == (
        "no isolation: copy-before-write has no on-cbw-error (QEMU 7.1)",
    )
    assert decided(recorded("4.0.0")).notes == (
        "no isolation: no copy-before-write (QEMU 7.1)",
        "no merging of bitmaps across nodes (QEMU 4.1)",
        "query-named-block-nodes has no flat (QEMU 5.0)",
        "blockdev-backup has no x-perf (QEMU 6.0)",
        "nbd has no reconnect-delay (QEMU 4.2)",
        "no block-export-add, only nbd-server-add (QEMU 5.2)",
    )
    assert decided(recorded("7.2.22"), (5, 2)).notes == (
        "treated as QEMU 5.2 (qemu_as_of)",
        "no isolation (QEMU 7.1)",
        "blockdev-backup has no x-perf (QEMU 6.0)",
    )
    assert decided(recorded("7.2.22"), (9, 0)).notes == ()


@pytest.mark.parametrize("name", [name for name in EXPECTED if "rc" not in name])
def test_a_probe_asks_once_for_each_answer_and_decides(name: str) -> None:
    monitor = Recording(recorded(name))
    assert probe(monitor) == decided(recorded(name))
    assert monitor.asked == ["query-version", "query-commands", "query-qmp-schema"]
    assert probe(monitor, "4.0") == decided(recorded(name), (4, 0))


def test_a_qemu_too_old_is_refused_before_it_is_asked_more() -> None:
    monitor = Recording({"query-version": {"qemu": {"major": 2, "minor": 11, "micro": 2}}})
    with pytest.raises(NotSupported, match=r"QEMU 2\.11\.2 is too old") as raised:
        probe(monitor)
    assert "QEMU 2.12 or later" in raised.value.mend
    assert not raised.value.retryable


def test_the_oldest_supported_is_not_refused() -> None:
    replies = recorded("2.12.0-rc0")
    replies["query-version"]["qemu"] = {"major": MINIMUM[0], "minor": MINIMUM[1], "micro": 0}
    assert able(probe(Recording(replies))) == able(EXPECTED["2.12.0-rc0"])


@pytest.mark.parametrize(("text", "version"), [("", None), ("4.2", (4, 2)), ("10.0", (10, 0))])
def test_as_of_is_a_version_or_nothing(text: str, version: tuple[int, int] | None) -> None:
    assert parse_as_of(text) == version


@pytest.mark.parametrize("text", ["4", "4.2.1", "v4.2", "4.2 ", "four", "-4.2", "4."])
def test_anything_else_is_refused_before_qemu_is_asked(text: str) -> None:
    monitor = Recording({})
    with pytest.raises(InvalidSettings, match="qemu_as_of"):
        probe(monitor, text)
    assert monitor.asked == []
