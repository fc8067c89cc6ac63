"""Which disks a domain has, and which block nodes stand behind them now.

Node names are resolved anew for each run and never stored: hotplug, snapshots and block jobs of
others change them. QEMU started by a libvirt with ``-blockdev`` names nodes and leaves ``device``
empty; an older one has ``drive-<alias>`` as device. Both resolve here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

from virtvault.errors import UnknownDisk
from virtvault.models import DiskInfo
from workers.monitor import Monitor

__all__ = ["Bitmap", "Disk", "Graph", "Layer", "active_node", "choose", "discover"]

FILTER = "copy-before-write"
# Buses whose device takes a new `drive` while it runs. usb-storage hides its drive in a child.
SWAPPABLE = ("virtio", "scsi", "sata", "ide")


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap as query-named-block-nodes shows it."""

    name: str
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool
    granularity: int

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
    """A guest disk. ``layers`` run from the active image down; ``skip`` says why it is left out."""

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
            skip=self.skip,
            bitmaps=tuple(sorted({name for layer in self.layers for name in layer.bitmaps})),
        )


class Graph:
    """QEMU's block graph at one moment."""

    def __init__(self, monitor: Monitor) -> None:
        nodes = monitor.execute("query-named-block-nodes", flat=True)
        self.nodes: dict[str, dict[str, Any]] = {node["node-name"]: node for node in nodes}
        # Unstable by QEMU's word, present from 4.0 to today, and the only query that tells a
        # filter's child before QEMU 10.1.
        graph = monitor.execute("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        self._children: dict[tuple[str, str], str] = {
            (names[edge["parent"]], edge["name"]): names[edge["child"]] for edge in graph["edges"]
        }

    def child(self, node: str, role: str) -> str | None:
        """The node under ``node`` in the role ``file`` or ``backing``."""
        return self._children.get((node, role))

    def below_filters(self, node: str) -> str:
        """The first node from ``node`` down that is not a copy-before-write filter."""
        while self.nodes.get(node, {}).get("drv") == FILTER:
            child = self.child(node, "file")
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
            if entry["drv"] not in (FILTER, "copy-on-read", "throttle", "commit_top"):
                found.append(_layer(entry))
                step = self.child(step, "backing")
            else:
                step = self.child(step, "file") or self.child(step, "backing")
        return tuple(found)


def discover(monitor: Monitor, xml: str) -> list[Disk]:
    """All disks of a domain in the order of its XML, the ones to skip with their reason."""
    blocks = monitor.execute("query-block")
    graph = Graph(monitor)
    return [
        _disk(element, blocks, graph)
        for element in ElementTree.fromstring(xml).findall("./devices/disk")
    ]


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
    )
    skip = _why_skipped(element, disk)
    return Disk(**{**disk.__dict__, "skip": skip}) if skip else disk


def _why_skipped(element: ElementTree.Element, disk: Disk) -> str:
    if disk.device in ("cdrom", "floppy"):
        return f"{disk.device} drive" + ("" if disk.layers else ", empty")
    if disk.device == "lun":
        return "device='lun' passes SCSI commands through; writes do not pass QEMU's block layer"
    if not disk.layers:
        return "no block node behind it in QEMU (empty, passed through or vhost-user)"
    if element.find("readonly") is not None:
        return "read-only"
    if element.find("transient") is not None:
        return "transient: what the guest writes is thrown away at its end"
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
        bitmaps={
            b["name"]: Bitmap(
                name=b["name"],
                recording=b["recording"],
                busy=b["busy"],
                persistent=b["persistent"],
                inconsistent=b.get("inconsistent", False),
                granularity=b["granularity"],
            )
            for b in entry.get("dirty-bitmaps", ())
            if "name" in b
        },
    )
