"""Setting the guest apart from the backup: filter, snapshot and their way back.

Per disk, with T the point's tag::

    guest device ──drive── vvc-T-vda  copy-before-write ──file── the disk's active node
                                │ target: vvs-T-vda  NBD to the scratch image
    block job ◀── vva-T-vda  snapshot-access ──file──┘
        └──▶ vvt-T-vda  NBD to the point's image

A guest write waits for the scratch copy alone, never for the target; when scratch fails or stalls
the snapshot breaks and the guest goes on (``on-cbw-error: break-snapshot``, ``cbw-timeout``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from virtvault.errors import MonitorError, WorkFailed
from workers.disks import FILTER, Disk, Graph, active_node, named_nodes
from workers.exports import Export
from workers.monitor import Monitor

__all__ = [
    "Names",
    "add_filter",
    "add_nbd",
    "add_snapshot",
    "put_back",
    "remove_node",
    "remove_nodes",
    "remove_snapshot",
    "serve",
    "stop_serving",
    "swap_in",
    "unix",
]

# The bitmap on the snapshot node that says what an incremental copies.
CHANGED = "virtvault-changed"


@dataclass(frozen=True)
class Names:
    """All names of one disk in one point. QEMU allows 31 characters for a node."""

    tag: str
    target: str

    @property
    def image(self) -> str:
        """The NBD node of the point's image."""
        return f"vvt-{self.tag}-{self.target}"

    @property
    def scratch(self) -> str:
        """The NBD node of the scratch image."""
        return f"vvs-{self.tag}-{self.target}"

    @property
    def filter(self) -> str:
        """The copy-before-write filter the guest's device is attached to."""
        return f"vvc-{self.tag}-{self.target}"

    @property
    def snapshot(self) -> str:
        """The node that shows the disk as it was at the instant."""
        return f"vva-{self.tag}-{self.target}"

    @property
    def seed(self) -> str:
        """The node that a new bitmap and its witness take their marks from."""
        return f"vvw-{self.tag}-{self.target}"

    @property
    def changed(self) -> str:
        """The bitmap that a job which reads the disk's own node copies from."""
        return f"virtvault-{self.tag}-changed"

    @property
    def job(self) -> str:
        """The block job's id, the same for every worker that looks for it."""
        return f"virtvault-{self.tag}-{self.target}"


def add_nbd(monitor: Monitor, node: str, export: Export) -> None:
    """Open an export in QEMU. A lost connection is an error at once, not a wait."""
    at_once = {"reconnect_delay": 0} if monitor.capabilities.nbd_reconnect else {}
    try:
        monitor.execute(
            "blockdev-add",
            driver="nbd",
            node_name=node,
            server={"type": "unix", "path": export.socket},
            export=export.name,
            **at_once,
        )
    except MonitorError as error:
        raise WorkFailed(
            error.message,
            "Where it says permission denied: AppArmor or SELinux keeps QEMU from the sockets in "
            "the runtime directory; deploy/apparmor has the rule.",
        ) from error


def add_filter(monitor: Monitor, disk: Disk, names: Names, cbw_timeout: int) -> None:
    """Make the filter over what the device is attached to; the guest does not use it yet.

    Over other filters (copy-on-read, throttling) too: the way back finds them under ours.
    """
    monitor.execute(
        "blockdev-add",
        driver=FILTER,
        node_name=names.filter,
        file=disk.root,
        target=names.scratch,
        on_cbw_error="break-snapshot",
        cbw_timeout=cbw_timeout,
    )


def swap_in(monitor: Monitor, disk: Disk, names: Names) -> None:
    """Attach the guest's device to the filter: from here on the snapshot holds."""
    monitor.execute("qom-set", path=disk.qom_path, property="drive", value=names.filter)


def add_snapshot(
    monitor: Monitor, disk: Disk, names: Names, sources: tuple[tuple[str, str], ...]
) -> None:
    """Make the snapshot node and, for an incremental, the bitmap of what to copy.

    ``sources`` are merged now, after the instant: they may hold more than was written by then,
    never less.
    """
    monitor.execute(
        "blockdev-add", driver="snapshot-access", node_name=names.snapshot, file=names.filter
    )
    if sources:
        monitor.execute("block-dirty-bitmap-add", node=names.snapshot, name=CHANGED, disabled=True)
        monitor.execute(
            "block-dirty-bitmap-merge",
            node=names.snapshot,
            target=CHANGED,
            bitmaps=[{"node": node, "name": name} for node, name in sources],
        )


def unix(socket: str) -> dict[str, Any]:
    """A unix socket as QMP's SocketAddressLegacy."""
    return {"type": "unix", "data": {"path": socket}}


def serve(monitor: Monitor, every: Sequence[Names]) -> None:
    """Export the snapshot nodes read-only through QEMU's own NBD server, which runs."""
    for names in every:
        monitor.execute(
            "block-export-add",
            type="nbd",
            id=names.snapshot,
            node_name=names.snapshot,
            name=names.target,
            writable=False,
        )


def stop_serving(monitor: Monitor, every: Sequence[Names]) -> None:
    """Take our exports out of QEMU, whoever still reads them, and the server of ours."""
    ours = {names.snapshot for names in every}
    there = {e["id"] for e in monitor.execute("query-block-exports")}
    for export in there & ours:
        monitor.execute("block-export-del", id=export, mode="hard")
    for _ in range(100):
        if not {e["id"] for e in monitor.execute("query-block-exports")} & ours:
            break
        time.sleep(0.02)
    if there <= ours:
        with contextlib.suppress(MonitorError):
            monitor.execute("nbd-server-stop")


def put_back(monitor: Monitor, disk: Disk, names: Names) -> None:
    """Attach the guest's device to what is under the filter *now*.

    Not to the node remembered from before: an external snapshot taken meanwhile has slid its
    overlay under the filter, and writes to the old node would be lost to the guest. And never to
    the node it is attached to already: QEMU 7.2 aborts on that.
    """
    for _ in range(5):
        # No device (hot-unplugged meanwhile), or one that was never moved, is not put back.
        if active_node(monitor, disk) != names.filter:
            return
        below = Graph(monitor).child(names.filter, "file")
        monitor.execute("qom-set", path=disk.qom_path, property="drive", value=below)
        # And look again: a snapshot may have come between the look and the step.
    raise WorkFailed(
        f"Disk {names.target}: its device could not be put back from filter {names.filter}.",
        "The guest works on through the filter. The next backup of it tries again.",
    )


def remove_snapshot(monitor: Monitor, names: Names) -> None:
    """Delete the snapshot node: while the filter has a reader it lets nobody write under it."""
    remove_node(monitor, names.snapshot)


def remove_nodes(monitor: Monitor, names: Names) -> None:
    """Delete the other nodes of one disk, in the order that lets go of each."""
    for node in (names.filter, names.image, names.scratch, names.seed):
        remove_node(monitor, node)


def remove_node(monitor: Monitor, node: str) -> None:
    """Delete a node where it is there. One just let go of may be in use for a moment still."""
    for attempt in range(40):
        try:
            monitor.execute("blockdev-del", node_name=node)
        except MonitorError:
            if node not in named_nodes(monitor):
                return
            if attempt == 39:
                raise
            time.sleep(0.05)
        else:
            return
