"""Which disks a domain has, and which block nodes stand behind them now.

Node names are resolved anew for each run and never stored: hotplug, snapshots and block jobs of
others change them. QEMU started by a libvirt with ``-blockdev`` names nodes and leaves ``device``
empty; an older one has ``drive-<alias>`` as device. Both resolve here.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from typing import Any

from virtvault.errors import MonitorError, UnknownDisk
from virtvault.models import DiskInfo
from workers.monitor import Monitor

__all__ = [
    "elements",
    "named_nodes",
    "Bitmap",
    "Disk",
    "Graph",
    "Layer",
    "active_node",
    "choose",
    "discover",
    "why_left_out",
]

# Seconds libvirt may take to dismiss a job of its own that has ended.
DISMISSED = 10.0
FILTER = "copy-before-write"
# With the name it had in QEMU 4.2 to 6.0; a running backup job puts one above its disk.
FILTERS = (FILTER, "backup-top")
# Buses whose device takes a new `drive` while it runs. usb-storage hides its drive in a child.
SWAPPABLE = ("virtio", "scsi", "sata", "ide")
# Drivers that stand below a format's node and are no image of their own.
PROTOCOLS = ("file", "host_device", "nbd", "rbd", "iscsi", "nfs", "https", "http", "ssh")


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap as query-named-block-nodes shows it."""

    name: str
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool
    granularity: int
    # Bytes marked; 0 where it is not known (images of a domain that is shut off).
    count: int = 0

    @property
    def trouble(self) -> str:
        """Why it must not be counted on, or empty."""
        if self.inconsistent:
            return "is inconsistent (QEMU ended without storing it)"
        if not self.recording:
            return "was disabled by somebody and has missed writes"
        if self.busy:
            return "is in use by another job"
        return ""


@dataclass(frozen=True)
class Layer:
    """One image of a disk's backing chain."""

    node: str
    filename: str
    driver: str
    bitmaps: dict[str, Bitmap]


@dataclass(frozen=True)
class Disk:
    """A guest disk. ``layers`` run from the active image down.

    ``root`` is the node its device is attached to: the active layer's, or a filter's above it.
    ``skip`` says why it is left out; ``fault`` why it cannot be backed up now though it should be.
    """

    target: str
    bus: str
    device: str
    qom_path: str
    source: str
    format: str
    virtual_size: int
    layers: tuple[Layer, ...] = ()
    skip: str = ""
    shared: bool = False
    compat: str = ""
    fault: str = ""
    root: str = ""

    @property
    def node(self) -> str:
        """The node-name of the active layer."""
        return self.layers[0].node

    @property
    def persistent(self) -> bool:
        """Whether bitmaps on the active layer survive a power cycle."""
        return self.format == "qcow2" and self.compat != "0.10"

    def info(self) -> DiskInfo:
        """What an operator is shown."""
        return DiskInfo(
            target=self.target,
            bus=self.bus,
            format=self.format,
            source=self.source,
            virtual_size=self.virtual_size,
            persistent_bitmaps=self.persistent,
            skip=self.skip or self.fault,
            bitmaps=tuple(sorted({name for layer in self.layers for name in layer.bitmaps})),
        )


def named_nodes(monitor: Monitor) -> dict[str, dict[str, Any]]:
    """QEMU's block nodes by their names."""
    flat = {"flat": True} if monitor.capabilities.flat else {}
    _wait_for_concluded_streams(monitor)
    nodes = monitor.execute("query-named-block-nodes", **flat)
    return {node["node-name"]: node for node in nodes if "node-name" in node}


def _wait_for_concluded_streams(monitor: Monitor) -> None:
    """Wait until nobody's stream has concluded and is not dismissed.

    QEMU 7.2 dies of the query for its nodes then (and its guest with it): the stream's filter is
    listed still and has nothing below it. libvirt dismisses its blockpulls at once.
    """
    until = time.monotonic() + DISMISSED
    while any(
        job["type"] == "stream" and job.get("status") == "concluded"
        for job in monitor.execute("query-block-jobs")
    ):
        if time.monotonic() > until:
            raise MonitorError(
                "A block job of type stream has concluded and nobody dismisses it: to look at the "
                "disks now could crash QEMU.",
                "Dismiss it (block-job-dismiss), or restart libvirtd where it is libvirt's.",
            )
        time.sleep(0.02)


class Graph:
    """QEMU's block graph at one moment."""

    def __init__(self, monitor: Monitor) -> None:
        self.nodes = named_nodes(monitor)
        self._children: dict[tuple[str, str], str] = {}
        if monitor.capabilities.graph:
            # Unstable by QEMU's word, present from 4.0 to today, and the only query that tells a
            # filter's child before QEMU 10.1.
            graph = monitor.execute("x-debug-query-block-graph")
            names = {node["id"]: node["name"] for node in graph["nodes"]}
            self._children = {
                (names[edge["parent"]], edge["name"]): names[edge["child"]]
                for edge in graph["edges"]
            }
        else:
            self._children = _backing_by_name(list(self.nodes.values()))

    def child(self, node: str, role: str) -> str | None:
        """The node under ``node`` in the role ``file`` or ``backing``."""
        return self._children.get((node, role))

    def below_filters(self, node: str) -> str:
        """The first node from ``node`` down that is not a filter which copies before writes."""
        while self.nodes.get(node, {}).get("drv") in FILTERS:
            child = self.child(node, "file") or self.child(node, "backing")
            if child is None:
                break
            node = child
        return node

    def layers(self, node: str) -> tuple[Layer, ...]:
        """The images from ``node`` down its backing chain."""
        found = []
        step: str | None = node
        while step is not None and step in self.nodes:
            entry = self.nodes[step]
            if entry["drv"] not in (*FILTERS, "copy-on-read", "throttle", "commit_top"):
                found.append(_layer(entry))
                step = self.child(step, "backing")
            else:
                step = self.child(step, "file") or self.child(step, "backing")
        return tuple(found)


def _backing_by_name(nodes: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Backing nodes by the file names that images say of theirs: all that QEMU < 4.0 tells.

    Where two nodes have a name it is not known which is meant, and neither is taken: the disk's
    layers then end early, which leads to a full and never to a wrong incremental.
    """
    by_name: dict[str, list[str]] = {}
    for node in nodes:
        if node["drv"] not in (*PROTOCOLS, *FILTERS):
            by_name.setdefault(node.get("file", ""), []).append(node["node-name"])
    found = {}
    for node in nodes:
        role, below = "backing", node.get("image", {}).get("backing-image", {}).get("filename")
        if node["drv"] in FILTERS:
            role, below = "file", node.get("file")
        if below and len(by_name.get(below, ())) == 1:
            found[node["node-name"], role] = by_name[below][0]
    return found


def discover(monitor: Monitor, xml: str) -> list[Disk]:
    """All disks of a domain in the order of its XML, the ones to skip with their reason."""
    for _ in range(5):
        blocks = monitor.execute("query-block")
        graph = Graph(monitor)
        # Asked one after the other: a job that ends in between takes its filter away.
        roots = [b["inserted"]["node-name"] for b in blocks if "inserted" in b]
        if all(graph.layers(graph.below_filters(root)) for root in roots):
            break
    return [_disk(element, blocks, graph) for element in elements(xml)]


def elements(xml: str) -> list[ElementTree.Element]:
    """The disks in a domain's XML."""
    return ElementTree.fromstring(xml).findall("./devices/disk")


def choose(
    disks: list[Disk], wanted: tuple[str, ...], domain: str
) -> tuple[list[Disk], dict[str, str]]:
    """The disks to back up, and for each other target why not.

    :raises UnknownDisk: a wanted target is not there or cannot be backed up.
    """
    known = {disk.target: disk for disk in disks}
    for target in wanted:
        if target not in known:
            raise UnknownDisk(
                f"Domain {domain} has no disk {target!r}.",
                f"It has {', '.join(known) or 'none'}.",
            )
        if known[target].skip:
            raise UnknownDisk(
                f"Disk {target} of domain {domain} cannot be backed up: {known[target].skip}.",
                "Leave it out.",
            )
    chosen = [d for d in disks if not d.skip and (not wanted or d.target in wanted)]
    skipped = {
        d.target: d.skip or "not asked for"
        for d in disks
        if d.target not in {c.target for c in chosen}
    }
    return chosen, skipped


def active_node(monitor: Monitor, disk: Disk) -> str | None:
    """The node the guest's device is attached to right now, filter or not."""
    for block in monitor.execute("query-block"):
        if _qom_path(block) == disk.qom_path and "inserted" in block:
            node: str = block["inserted"]["node-name"]
            return node
    return None


def _disk(element: ElementTree.Element, blocks: list[dict[str, Any]], graph: Graph) -> Disk:
    target = element.find("target")
    assert target is not None  # libvirt writes it for every disk
    name, bus = target.get("dev", ""), target.get("bus", "")
    device = element.get("device", "disk")
    alias_element = element.find("alias")
    alias = alias_element.get("name", "") if alias_element is not None else ""
    block = next((b for b in blocks if _belongs(b, alias)), None)
    inserted = block.get("inserted") if block else None
    layers = graph.layers(graph.below_filters(inserted["node-name"])) if inserted else ()
    if block and layers and not layers[0].bitmaps and "dirty-bitmaps" in block:
        # QEMU < 4.2 tells bitmaps of a device, not of its nodes.
        layers = (replace(layers[0], bitmaps=_bitmaps(block)), *layers[1:])
    image = graph.nodes[layers[0].node]["image"] if layers else {}
    disk = Disk(
        target=name,
        bus=bus,
        device=device,
        qom_path=_qom_path(block) if block else "",
        source=layers[0].filename if layers else "",
        format=layers[0].driver if layers else "",
        virtual_size=image.get("virtual-size", 0),
        layers=layers,
        shared=element.find("shareable") is not None,
        compat=image.get("format-specific", {}).get("data", {}).get("compat", ""),
        root=graph.below_filters(inserted["node-name"]) if inserted else "",
    )
    return replace(disk, skip=_why_skipped(element, disk))


def why_left_out(element: ElementTree.Element, disk: Disk) -> str:
    """Why a disk is left out whether its domain runs or not, or empty."""
    if disk.device in ("cdrom", "floppy"):
        return f"{disk.device} drive" + ("" if disk.layers else ", empty")
    if disk.device == "lun":
        return "device='lun' passes SCSI commands through; writes do not pass QEMU's block layer"
    if element.find("readonly") is not None:
        return "read-only"
    if element.find("transient") is not None:
        return "transient: what the guest writes is thrown away at its end"
    return ""


def _why_skipped(element: ElementTree.Element, disk: Disk) -> str:
    if reason := why_left_out(element, disk):
        return reason
    if not disk.layers:
        return "no block node behind it in QEMU (empty, passed through or vhost-user)"
    if disk.bus not in SWAPPABLE:
        return f"bus {disk.bus}: its device does not take a new block node while it runs"
    return ""


def _belongs(block: dict[str, Any], alias: str) -> bool:
    if not alias:
        return False
    if block.get("device", "").removeprefix("drive-") == alias:
        return True
    qdev = block.get("qdev", "")
    return qdev == alias or alias in qdev.split("/")


def _qom_path(block: dict[str, Any]) -> str:
    """The path whose ``drive`` property is the disk's root node."""
    qdev: str = block.get("qdev", "")
    if not qdev or qdev.startswith("/"):
        return qdev
    return f"/machine/peripheral/{qdev}"


def _layer(entry: dict[str, Any]) -> Layer:
    return Layer(
        node=entry["node-name"],
        filename=entry.get("file", ""),
        driver=entry["drv"],
        bitmaps=_bitmaps(entry),
    )


def _bitmaps(entry: dict[str, Any]) -> dict[str, Bitmap]:
    """Named bitmaps as a node or device has them. QEMU < 4.0 says ``status`` and no flags."""
    return {
        b["name"]: Bitmap(
            name=b["name"],
            recording=b.get("recording", b.get("status") == "active"),
            busy=b.get("busy", b.get("status") in ("frozen", "locked")),
            persistent=b.get("persistent", False),
            inconsistent=b.get("inconsistent", False),
            granularity=b["granularity"],
            count=b.get("count", 0),
        )
        for b in entry.get("dirty-bitmaps", ())
        if "name" in b
    }
