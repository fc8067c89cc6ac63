"""What a QEMU can do, asked of QEMU itself.

Decided from ``query-version``, ``query-commands`` and ``query-qmp-schema``, never from the version
alone: distributions take features back into older versions and build others without them. The
versions below are QEMU's own "since" (its QMP reference manual, compared with recorded replies);
they serve the notes for people, and the setting ``qemu_as_of``, which makes a newer QEMU do with
what an older one has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtvault.errors import InvalidSettings, NotSupported
from workers.qmp_schema import Schema

if TYPE_CHECKING:
    from workers.monitor import Monitor

__all__ = ["MINIMUM", "Capabilities", "decide", "parse_as_of", "probe"]

Version = tuple[int, int]

# The first with `auto-dismiss`: before it a job that ends leaves nothing to tell how it ended.
MINIMUM: Version = (2, 12)


@dataclass(frozen=True)
class Capabilities:
    """What the engine may use of one QEMU process."""

    # The real one, whatever ``as_of`` says: (major, minor, micro).
    version: tuple[int, int, int]
    # The command that copies a disk: "blockdev-backup" where it takes a bitmap, else
    # "drive-backup".
    copy: str
    # All that :mod:`workers.isolation` needs is there.
    isolation: bool
    # block-dirty-bitmap-merge: "any node" (from bitmaps of other nodes too), "same node", "none".
    # Where it exists a transaction takes it too.
    merge: str
    # block-dirty-bitmap-add takes `persistent`.
    persistent: bool
    # "job" (job-pause, job-resume, job-dismiss …) or "block-job" (block-job-pause …).
    job_commands: str
    # The copying command takes `auto-dismiss`: a concluded job stays listed.
    keeps_jobs: bool
    # query-named-block-nodes takes `flat`.
    flat: bool
    # x-debug-query-block-graph exists.
    graph: bool
    # The copying command takes `x-perf`.
    x_perf: bool
    # A bitmap is described by `recording` and `busy`; otherwise by `status` alone (active,
    # disabled, frozen, locked), which tells neither whether it persists nor whether it is
    # inconsistent.
    bitmap_flags: bool
    # An NBD node takes `reconnect-delay`.
    nbd_reconnect: bool
    # block-export-add exists; otherwise only nbd-server-add.
    block_exports: bool
    # For people: what this QEMU cannot do, and the version that could.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Qemu:
    """The answers, and how far they count."""

    commands: frozenset[str]
    schema: Schema
    as_of: Version | None

    def has(self, feature: _Feature) -> bool:
        """Whether it is there, and was by ``as_of``, and what it builds on too."""
        if feature.on is not None and not self.has(feature.on):
            return False
        return feature.there(self) and (self.as_of is None or feature.since <= self.as_of)

    @property
    def copy(self) -> str:
        return "blockdev-backup" if self.has(_BACKUP_BY_NODE) else "drive-backup"

    @property
    def merge(self) -> str:
        if self.has(_MERGE_ACROSS):
            return "any node"
        return "same node" if self.has(_MERGE) else "none"

    @property
    def bitmap(self) -> dict[str, str]:
        """How a bitmap is described: in its node (since 4.2), before in its device (until 5.2)."""
        for query in ("query-named-block-nodes", "query-block"):
            listed = self.schema.returned(query).get("dirty-bitmaps")
            if listed:
                return self.schema.members(self.schema.item(listed))
        return {}

    def lacks_for_isolation(self) -> list[str]:
        """What :mod:`workers.isolation` needs and is not there, in words."""
        nodes = self.schema.takes("blockdev-add")
        drivers, filters = self.schema.cases(nodes), self.schema.branch(nodes, "copy-before-write")
        needs = {
            "no copy-before-write": "copy-before-write" in drivers,
            "copy-before-write has no on-cbw-error": "on-cbw-error" in filters,
            "copy-before-write has no cbw-timeout": "cbw-timeout" in filters,
            "no snapshot-access": "snapshot-access" in drivers,
            "no qom-set": "qom-set" in self.commands,
            "no x-debug-query-block-graph": self.has(_GRAPH),
            "no merging of bitmaps across nodes": self.merge == "any node",
            "no blockdev-backup with a bitmap": self.copy == "blockdev-backup",
        }
        return [lack for lack, there in needs.items() if not there]


@dataclass(frozen=True)
class _Feature:
    """Something that came to QEMU with a version."""

    since: Version
    there: Callable[[_Qemu], bool]
    # For people where it is not there.
    without: Callable[[_Qemu], str]
    # What it builds on.
    on: _Feature | None = None


_BACKUP_BY_NODE = _Feature(
    (3, 1),
    lambda q: "bitmap" in q.schema.arguments("blockdev-backup"),
    lambda q: "blockdev-backup takes no bitmap: drive-backup copies",
)
_ISOLATION = _Feature(
    (7, 1),
    lambda q: not q.lacks_for_isolation(),
    lambda q: ": ".join(["no isolation", *q.lacks_for_isolation()[:1]]),
)
_MERGE = _Feature(
    (4, 0),
    lambda q: "block-dirty-bitmap-merge" in q.commands,
    lambda q: "no merging of bitmaps",
)
_MERGE_ACROSS = _Feature(
    (4, 1),
    # An alternate: a name on the same node, or {node, name}. Before, plain names.
    lambda q: (
        q.schema.kind(
            q.schema.item(q.schema.arguments("block-dirty-bitmap-merge").get("bitmaps", ""))
        )
        == "alternate"
    ),
    lambda q: "no merging of bitmaps across nodes",
    on=_MERGE,
)
_PERSISTENT = _Feature(
    (2, 10),
    lambda q: "persistent" in q.schema.arguments("block-dirty-bitmap-add"),
    lambda q: "no persistent bitmaps",
)
_JOB_COMMANDS = _Feature(
    (3, 0),
    lambda q: q.commands >= {"job-pause", "job-resume", "job-cancel", "job-dismiss"},
    lambda q: "no job-… commands, only block-job-…",
)
_KEEPS_JOBS = _Feature(
    (2, 12),
    lambda q: "auto-dismiss" in q.schema.arguments(q.copy),
    lambda q: f"{q.copy} has no auto-dismiss",
)
_FLAT = _Feature(
    (5, 0),
    lambda q: "flat" in q.schema.arguments("query-named-block-nodes"),
    lambda q: "query-named-block-nodes has no flat",
)
_GRAPH = _Feature(
    (4, 0),
    lambda q: "x-debug-query-block-graph" in q.commands,
    lambda q: "no x-debug-query-block-graph",
)
_X_PERF = _Feature(
    (6, 0),
    lambda q: "x-perf" in q.schema.arguments(q.copy),
    lambda q: f"{q.copy} has no x-perf",
)
_BITMAP_FLAGS = _Feature(
    (4, 0),
    lambda q: q.bitmap.keys() >= {"recording", "busy"},
    lambda q: "bitmaps do not tell whether they persist or are inconsistent",
)
_NBD_RECONNECT = _Feature(
    (4, 2),
    lambda q: "reconnect-delay" in q.schema.branch(q.schema.takes("blockdev-add"), "nbd"),
    lambda q: "nbd has no reconnect-delay",
)
_BLOCK_EXPORTS = _Feature(
    (5, 2),
    lambda q: "block-export-add" in q.commands,
    lambda q: "no block-export-add, only nbd-server-add",
)

# In the order of the notes: what matters most to people first.
_FEATURES = (
    _ISOLATION,
    _MERGE,
    _MERGE_ACROSS,
    _PERSISTENT,
    _BITMAP_FLAGS,
    _KEEPS_JOBS,
    _BACKUP_BY_NODE,
    _JOB_COMMANDS,
    _GRAPH,
    _FLAT,
    _X_PERF,
    _NBD_RECONNECT,
    _BLOCK_EXPORTS,
)


def parse_as_of(text: str) -> Version | None:
    """The setting ``qemu_as_of``: empty or ``MAJOR.MINOR``.

    :raises InvalidSettings: it is neither.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    if match is None:
        raise InvalidSettings(
            f"qemu_as_of: {text!r} is not a QEMU version.",
            "Write MAJOR.MINOR, as in 4.2, or leave it empty.",
        )
    return int(match[1]), int(match[2])


def probe(monitor: Monitor, as_of: str = "") -> Capabilities:
    """Ask a QEMU what it can do. See :func:`decide` for ``as_of``.

    :raises NotSupported: it is older than :data:`MINIMUM`.
    :raises InvalidSettings: ``as_of`` is not a version.
    """
    limit = parse_as_of(as_of)
    qemu = monitor.execute("query-version")["qemu"]
    version = (int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"]))
    if version[:2] < MINIMUM:
        raise NotSupported(
            f"QEMU {_dotted(version)} is too old: its jobs leave no trace of how they ended.",
            f"Install QEMU {_dotted(MINIMUM)} or later, then restart or migrate the domain.",
        )
    commands = {command["name"] for command in monitor.execute("query-commands")}
    return decide(version, commands, monitor.execute("query-qmp-schema"), limit)


def decide(
    version: tuple[int, int, int],
    commands: Collection[str],
    schema: Schema | Iterable[Mapping[str, Any]],
    as_of: Version | None = None,
) -> Capabilities:
    """What a QEMU with these answers can do.

    ``as_of`` only takes away: what came to QEMU after that version counts as missing.
    """
    entries = schema if isinstance(schema, Schema) else Schema(schema)
    qemu = _Qemu(frozenset(commands), entries, as_of)
    return Capabilities(
        version=version,
        copy=qemu.copy,
        isolation=qemu.has(_ISOLATION),
        merge=qemu.merge,
        persistent=qemu.has(_PERSISTENT),
        job_commands="job" if qemu.has(_JOB_COMMANDS) else "block-job",
        keeps_jobs=qemu.has(_KEEPS_JOBS),
        flat=qemu.has(_FLAT),
        graph=qemu.has(_GRAPH),
        x_perf=qemu.has(_X_PERF),
        bitmap_flags=qemu.has(_BITMAP_FLAGS),
        nbd_reconnect=qemu.has(_NBD_RECONNECT),
        block_exports=qemu.has(_BLOCK_EXPORTS),
        notes=_notes(qemu, version),
    )


def _notes(qemu: _Qemu, version: tuple[int, int, int]) -> tuple[str, ...]:
    notes = [
        f"{feature.without(qemu)} (QEMU {_dotted(feature.since)})"
        for feature in _FEATURES
        # Where what it builds on is missing, that says it already.
        if not qemu.has(feature) and (feature.on is None or qemu.has(feature.on))
    ]
    if qemu.as_of is not None and qemu.as_of < version[:2]:
        notes.insert(0, f"treated as QEMU {_dotted(qemu.as_of)} (qemu_as_of)")
    return tuple(notes)


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))
