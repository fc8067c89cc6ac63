"""Disks and block nodes from replies recorded of QEMU 7.2, of both ways libvirt has started it.

Shortened to the fields that are read, otherwise as QEMU gave them.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.recorded import MODERN
from virtvault.errors import UnknownDisk
from workers.disks import Graph, active_node, choose, discover

MIB = 2**20


class RecordedQemu:
    """A Monitor that gives recorded replies."""

    capabilities = MODERN

    def __init__(self, blocks: list[Any], nodes: list[Any], graph: dict[str, Any]) -> None:
        self.replies: dict[str, Any] = {
            "query-block": blocks,
            "query-named-block-nodes": nodes,
            "query-block-jobs": [],
            "x-debug-query-block-graph": graph,
        }

    def execute(self, command: str, **_: Any) -> Any:
        return self.replies[command]

    def wait(self, seconds: float) -> None:
        raise AssertionError("nothing to wait for")

    def close(self) -> None:
        pass


def node(name: str, driver: str, file: str, size: int, **more: Any) -> dict[str, Any]:
    image = {"virtual-size": size, "filename": file, "format": driver}
    return {"node-name": name, "drv": driver, "file": file, "image": image, **more}


def graph(edges: list[tuple[int, str, int]], names: dict[int, str]) -> dict[str, Any]:
    return {
        "edges": [{"parent": p, "name": name, "child": c} for p, name, c in edges],
        "nodes": [{"id": number, "name": name} for number, name in names.items()],
    }


def bitmap(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "recording": True,
        "persistent": True,
        "busy": False,
        "granularity": 65536,
        "count": 0,
        **more,
    }


# libvirt 9.0 (-blockdev): no device names, nodes named by libvirt, SCSI and SATA by plain ids.
VIRTIO_QDEV = "/machine/peripheral/virtio-disk0/virtio-backend"
NEW_BLOCKS = [
    {"device": "", "inserted": {"node-name": "libvirt-4-format"}, "qdev": VIRTIO_QDEV},
    {"device": "", "inserted": {"node-name": "libvirt-3-format"}, "qdev": "scsi0-0-0-0"},
    {"device": "", "inserted": {"node-name": "libvirt-2-format"}, "qdev": "sata0-0-1"},
    {"device": "", "removable": True, "qdev": "sata0-0-2", "tray_open": False},
]
NEW_NODES = [
    node("libvirt-2-format", "raw", "/g/sdb.raw", 32 * MIB),
    node("libvirt-2-storage", "file", "/g/sdb.raw", 32 * MIB),
    node("libvirt-3-format", "raw", "/g/sda.raw", 64 * MIB),
    node("libvirt-3-storage", "file", "/g/sda.raw", 64 * MIB),
    node(
        "libvirt-4-format",
        "qcow2",
        "/g/vda.qcow2",
        64 * MIB,
        **{"dirty-bitmaps": [bitmap("mine"), bitmap("old", inconsistent=True)]},
    ),
    node("libvirt-4-storage", "file", "/g/vda.qcow2", 197120),
]
NEW_NAMES = {
    6: "libvirt-2-format",
    10: "libvirt-2-storage",
    4: "libvirt-3-format",
    9: "libvirt-3-storage",
    2: "libvirt-4-format",
    8: "libvirt-4-storage",
    7: "sata0-0-2",
    5: "sata0-0-1",
    3: "scsi0-0-0-0",
    1: VIRTIO_QDEV,
}
NEW_EDGES = [
    (6, "file", 10),
    (4, "file", 9),
    (2, "file", 8),
    (5, "root", 6),
    (3, "root", 4),
    (1, "root", 2),
]
NEW_XML = """
<domain><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow2' discard='unmap'/>
    <source file='/g/vda.qcow2' index='4'/><backingStore/>
    <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
  </disk>
  <disk type='file' device='disk'>
    <driver name='qemu' type='raw' discard='unmap'/>
    <source file='/g/sda.raw' index='3'/><backingStore/>
    <target dev='sda' bus='scsi'/><alias name='scsi0-0-0-0'/>
  </disk>
  <disk type='file' device='disk'>
    <driver name='qemu' type='raw' discard='unmap'/>
    <source file='/g/sdb.raw' index='2'/><backingStore/>
    <target dev='sdb' bus='sata'/><alias name='sata0-0-1'/>
  </disk>
  <disk type='file' device='cdrom'>
    <driver name='qemu'/><target dev='sdc' bus='sata'/><readonly/><alias name='sata0-0-2'/>
  </disk>
</devices></domain>"""

# An older libvirt (-drive): devices drive-<alias>, nodes named by QEMU itself. One has a snapshot.
OLD_BLOCKS = [
    {
        "device": "drive-virtio-disk0",
        "inserted": {"node-name": "#block112", "backing_file_depth": 1},
        "qdev": VIRTIO_QDEV,
    },
    {"device": "drive-sata0-0-1", "removable": True, "qdev": "sata0-0-1", "tray_open": False},
]
OLD_NODES = [
    node("#block360", "qcow2", "base.qcow2", 64 * MIB),
    node("#block210", "file", "base.qcow2", 197120),
    node("#block112", "qcow2", "top.qcow2", 64 * MIB, **{"dirty-bitmaps": [bitmap("mine")]}),
    node("#block035", "file", "top.qcow2", 197120),
]
OLD_GRAPH = graph(
    [(5, "file", 6), (2, "file", 4), (2, "backing", 5), (1, "root", 2)],
    {
        5: "#block360",
        6: "#block210",
        2: "#block112",
        4: "#block035",
        3: "drive-sata0-0-1",
        1: "drive-virtio-disk0",
    },
)
OLD_XML = """
<domain><devices>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow2'/><source file='top.qcow2'/>
    <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/>
  </disk>
  <disk type='file' device='cdrom'>
    <target dev='sda' bus='sata'/><readonly/><alias name='sata0-0-1'/>
  </disk>
</devices></domain>"""


def new() -> RecordedQemu:
    return RecordedQemu(NEW_BLOCKS, NEW_NODES, graph(NEW_EDGES, NEW_NAMES))


def old() -> RecordedQemu:
    return RecordedQemu(OLD_BLOCKS, OLD_NODES, OLD_GRAPH)


def with_filter() -> RecordedQemu:
    """The first, its virtio disk behind a copy-before-write filter of a backup."""
    blocks = [{**NEW_BLOCKS[0], "inserted": {"node-name": "vvc-1-vda"}}, *NEW_BLOCKS[1:]]
    nodes = [
        *NEW_NODES,
        node("vvc-1-vda", "copy-before-write", "/g/vda.qcow2", 64 * MIB),
        node("vvs-1-vda", "nbd", "nbd+unix:///vda", 64 * MIB),
    ]
    edges = [*NEW_EDGES[:-1], (1, "root", 11), (11, "file", 2), (11, "target", 12)]
    return RecordedQemu(
        blocks, nodes, graph(edges, {**NEW_NAMES, 11: "vvc-1-vda", 12: "vvs-1-vda"})
    )


def test_disks_of_a_libvirt_that_names_its_nodes() -> None:
    disks = discover(new(), NEW_XML)
    assert [(d.target, d.bus, d.format, d.virtual_size, d.qom_path) for d in disks] == [
        ("vda", "virtio", "qcow2", 64 * MIB, VIRTIO_QDEV),
        ("sda", "scsi", "raw", 64 * MIB, "/machine/peripheral/scsi0-0-0-0"),
        ("sdb", "sata", "raw", 32 * MIB, "/machine/peripheral/sata0-0-1"),
        ("sdc", "sata", "", 0, "/machine/peripheral/sata0-0-2"),
    ]
    assert [d.node for d in disks[:3]] == [f"libvirt-{n}-format" for n in (4, 3, 2)]
    assert [d.persistent for d in disks[:3]] == [True, False, False]
    assert [d.skip for d in disks] == ["", "", "", "cdrom drive, empty"]


def test_disks_of_a_libvirt_that_names_drives() -> None:
    vda, cdrom = discover(old(), OLD_XML)
    assert (vda.qom_path, vda.node, vda.source) == (VIRTIO_QDEV, "#block112", "top.qcow2")
    assert [layer.filename for layer in vda.layers] == ["top.qcow2", "base.qcow2"]
    assert [list(layer.bitmaps) for layer in vda.layers] == [["mine"], []]
    assert cdrom.skip == "cdrom drive, empty"


def test_an_old_qcow2_cannot_keep_bitmaps_over_a_power_cycle() -> None:
    old_format = {"format-specific": {"type": "qcow2", "data": {"compat": "0.10"}}}
    nodes = [
        {**n, "image": {**n["image"], **old_format}} if n["drv"] == "qcow2" else n
        for n in NEW_NODES
    ]
    vda = discover(RecordedQemu(NEW_BLOCKS, nodes, graph(NEW_EDGES, NEW_NAMES)), NEW_XML)[0]
    assert not vda.persistent


def test_a_bitmap_tells_why_it_cannot_be_counted_on() -> None:
    bitmaps = discover(new(), NEW_XML)[0].layers[0].bitmaps
    assert {name: found.trouble for name, found in bitmaps.items()} == {
        "mine": "",
        "old": "is inconsistent (QEMU ended without storing it)",
    }


def test_a_disk_behind_our_own_filter_is_seen_as_what_is_under_it() -> None:
    qemu = with_filter()
    vda = discover(qemu, NEW_XML)[0]
    assert (vda.node, vda.format, vda.source) == ("libvirt-4-format", "qcow2", "/g/vda.qcow2")
    assert active_node(qemu, vda) == "vvc-1-vda"
    assert Graph(qemu).child("vvc-1-vda", "file") == "libvirt-4-format"
    assert Graph(qemu).below_filters("vvc-1-vda") == "libvirt-4-format"


def test_the_node_a_device_is_attached_to_is_none_where_it_has_none() -> None:
    cdrom = discover(new(), NEW_XML)[3]
    assert active_node(new(), cdrom) is None


def test_one_alias_is_not_taken_for_another_that_begins_like_it() -> None:
    blocks = [
        {
            "device": "",
            "inserted": {"node-name": "libvirt-3-format"},
            "qdev": "/machine/peripheral/virtio-disk10/virtio-backend",
        },
        NEW_BLOCKS[0],
    ]
    qemu = RecordedQemu(blocks, NEW_NODES, graph(NEW_EDGES, NEW_NAMES))
    assert discover(qemu, NEW_XML)[0].node == "libvirt-4-format"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("<backingStore/>", "<readonly/>"), "read-only"),
        (("<backingStore/>", "<transient/>"), "transient"),
        (("device='disk'", "device='lun'"), "device='lun'"),
        (("device='disk'", "device='floppy'"), "floppy drive"),
        (("bus='virtio'", "bus='usb'"), "bus usb"),
        (("virtio-disk0", "virtio-disk7"), "no block node behind it"),
    ],
)
def test_a_disk_that_cannot_be_backed_up_says_why(change: tuple[str, str], reason: str) -> None:
    vda = discover(new(), NEW_XML.replace(*change, 1))[0]
    assert vda.skip.startswith(reason)


def test_a_shareable_disk_is_known_as_one() -> None:
    disks = discover(new(), NEW_XML.replace("<backingStore/>", "<shareable/>", 1))
    assert [d.shared for d in disks] == [True, False, False, False]


def test_what_is_left_out_is_said_with_its_reason() -> None:
    disks = discover(new(), NEW_XML)
    chosen, skipped = choose(disks, (), "web")
    assert [d.target for d in chosen] == ["vda", "sda", "sdb"]
    assert skipped == {"sdc": "cdrom drive, empty"}
    chosen, skipped = choose(disks, ("sdb", "vda"), "web")
    assert [d.target for d in chosen] == ["vda", "sdb"]
    assert skipped == {"sda": "not asked for", "sdc": "cdrom drive, empty"}


def test_a_disk_that_is_asked_for_must_be_there_and_fit() -> None:
    disks = discover(new(), NEW_XML)
    with pytest.raises(UnknownDisk, match="Domain web has no disk 'vdb'") as caught:
        choose(disks, ("vda", "vdb"), "web")
    assert caught.value.mend == "It has vda, sda, sdb, sdc."
    with pytest.raises(UnknownDisk, match="sdc of domain web cannot be backed up: cdrom drive"):
        choose(disks, ("sdc",), "web")
    with pytest.raises(UnknownDisk) as caught:
        choose([], ("vda",), "web")
    assert caught.value.mend == "It has none."


def test_what_an_operator_is_shown_names_all_bitmaps_of_the_chain() -> None:
    info = discover(new(), NEW_XML)[0].info()
    assert (info.target, info.source, info.bitmaps) == ("vda", "/g/vda.qcow2", ("mine", "old"))
