"""The scene of test_between_points: a guest, its points, and what others can do to its disks."""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import libvirt

from tests.integration.conftest import MIB
from tests.integration.scenes import (
    bitmaps,
    block_jobs,
    disk_of,
    image_of,
    node_of,
    qemu_img,
    until,
)
from tests.lab import DiskSpec, Guest, assert_same
from tests.lab.domain import own
from virtvault.models import BackupRequest, BackupResult
from workers.backup import backup
from workers.bitmap_names import PREFIX, WITNESS
from workers.engine import Engine, Ties

DISK = "vda"
KIB = 1024
# Bytes of each disk: small, since each point of the matrix costs time by it.
SIZE = 16 * MIB


class Scene:
    """One guest between its points: writes that nothing hides, points with references."""

    def __init__(self, engine: Engine, guest: Guest, directory: Path) -> None:
        self.engine = engine
        self.guest = guest
        self.directory = directory
        self.points: list[BackupResult] = []
        self._references: list[tuple[BackupResult, str, Path]] = []
        self._rounds = 0

    def fill(self) -> None:
        """Old data all over the disks, so that zeroes and holes written later show."""
        for number, target in enumerate(self.targets()):
            self.guest.qemu_io(target, f"write -P {200 + number} 0 {SIZE}")

    def write(self) -> None:
        """Data and a discard over old data, where no other round writes.

        What is written tells the round and the disk.
        """
        self._rounds += 1
        at = self._rounds * MIB
        for number, target in enumerate(self.targets()):
            value = 10 * self._rounds + number
            self.guest.qemu_io(target, f"write -P {value} {at} 128k")
            self.guest.qemu_io(target, f"discard {at + 384 * KIB} 64k")

    def point(self) -> BackupResult:
        """A point, with a copy of each of its disks' content at the same instant."""
        references = {target: self._copy(target) for target in self.targets()}
        request = BackupRequest(domain=self.guest.name, sync="auto")
        result = backup(self.engine, request, Ties(uuid.uuid4().hex))
        assert isinstance(result, BackupResult)
        assert {disk.target for disk in result.disks} == set(references)
        for disk in result.disks:
            image = self._node(disk.target)["image"]
            assert (disk.source, disk.virtual_size) == (image["filename"], image["virtual-size"])
        self._references += [(result, target, copy) for target, copy in references.items()]
        self.points.append(result)
        return result

    def prove_all(self) -> None:
        """Every disk of every point is byte for byte what the guest saw at its instant."""
        for result, target, reference in self._references:
            assert_same(image_of(self.engine, result, target), "qcow2", reference, "qcow2")

    def assert_bitmaps_of_the_last_point(self) -> None:
        """Each disk's active image has of ours what counts from the last point, and no more."""
        found = bitmaps(self.guest)
        for disk in self.points[-1].disks:
            node = f"{node_of(self.guest, disk.target)}/"
            ours = {n.removeprefix(node) for n in found if n.startswith(f"{node}{PREFIX}")}
            assert ours == {disk.bitmap, f"{disk.bitmap}.{WITNESS}"}

    # -- looking ------------------------------------------------------------------------------

    def targets(self) -> list[str]:
        """The writable disks that are attached now."""
        domain = ElementTree.fromstring(self.guest.domain.XMLDesc())
        found = domain.iterfind("./devices/disk[@device='disk']/target")
        return [target.attrib["dev"] for target in found]

    def chain(self, target: str = DISK) -> list[str]:
        """The image files of a disk from the active one down, as QEMU has them open."""
        image = self._node(target)["image"]
        found = []
        while image:
            found.append(image["filename"])
            image = image.get("backing-image")
        return found

    def node(self, image: str | Path) -> str:
        """The node of an image that QEMU has open."""
        nodes = self.guest.qmp("query-named-block-nodes", flat=True)
        (name,) = (n["node-name"] for n in nodes if n["file"] == str(image) and n["drv"] == "qcow2")
        return str(name)

    @property
    def image(self) -> Path:
        """The image the disk was made with."""
        return self.guest.image(DISK)

    @property
    def bitmap(self) -> str:
        """The disk's bitmap that counts from the last point."""
        return disk_of(self.points[-1], DISK).bitmap

    @property
    def witness(self) -> str:
        """What stands beside :attr:`bitmap` to tell whether it is still whole."""
        return f"{self.bitmap}.{WITNESS}"

    def path(self, name: str) -> Path:
        """A file that the guest's QEMU may open, removed with the guest."""
        return self.guest.directory / f"{self.guest.name}-{name}"

    def _copy(self, target: str) -> Path:
        """What the guest sees of a disk: its whole chain, as one image."""
        active = self._node(target)
        self.guest.qemu_io(target, "flush")
        copy = self.directory / f"reference-{len(self.points)}-{target}"
        qemu_img("convert", "-U", "-f", active["drv"], "-O", "qcow2", active["file"], copy)
        return copy

    def _node(self, target: str) -> dict[str, Any]:
        name = node_of(self.guest, target)
        nodes = self.guest.qmp("query-named-block-nodes")
        return next(node for node in nodes if node["node-name"] == name)

    # -- doing --------------------------------------------------------------------------------

    def off(self) -> None:
        """End QEMU in good order."""
        self.guest.shutdown_clean()

    def on(self) -> None:
        """Start the domain again."""
        self.guest.start()

    def hmp(self, line: str) -> None:
        """A command of the human monitor; what it says is its error."""
        said = self.guest.qmp("human-monitor-command", **{"command-line": line})
        if said:
            raise RuntimeError(said)

    def on_bitmap(self, command: str, *names: str, **more: Any) -> None:
        """A ``block-dirty-bitmap-`` command, as somebody else may send it, on our bitmap.

        Or on others of the disk's, where they are named.
        """
        node = node_of(self.guest, DISK)
        for name in names or (self.bitmap,):
            self.guest.qmp(f"block-dirty-bitmap-{command}", node=node, name=name, **more)

    def new_image(self, name: str, *options: str | Path) -> Path:
        """An empty qcow2 image that QEMU may open."""
        image = self.path(name)
        qemu_img("create", "-q", "-f", "qcow2", *options, image, str(SIZE))
        own(image)
        return image

    def snapshot(self, name: str, *, metadata: bool = False) -> Path:
        """An external snapshot by libvirt; gives the overlay."""
        overlay = self.path(name)
        self.guest.domain.snapshotCreateXML(
            f"<domainsnapshot><name>{name}</name><disks><disk name='{DISK}' snapshot='external'>"
            f"<source file='{overlay}'/></disk></disks></domainsnapshot>",
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | (0 if metadata else libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA),
        )
        assert self.chain()[0] == str(overlay)
        return overlay

    def snapshot_by_qmp(self, name: str) -> str:
        """An external snapshot by QMP, of which libvirt knows nothing; gives the overlay's node."""
        overlay = self.new_image(name, "-b", self.image, "-F", "qcow2")
        self.guest.qmp(
            "blockdev-add",
            **{"driver": "qcow2", "node-name": name, "backing": None},
            file={"driver": "file", "filename": str(overlay)},
        )
        self.guest.qmp("blockdev-snapshot", node=node_of(self.guest, DISK), overlay=name)
        assert self.chain()[0] == str(overlay)
        return name

    def begin_commit(self) -> None:
        """libvirt's commit of the active image, up to where it waits for the pivot."""
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE
        self.guest.domain.blockCommit(DISK, None, None, 0, flags)
        self.await_ready()

    def commit(self) -> None:
        """libvirt's commit of the active image, with pivot; the guest writes until then."""
        before = len(self.chain())
        self.begin_commit()
        self.write()
        self.pivot()
        assert len(self.chain()) < before

    def commit_inner(self, top: Path) -> None:
        """libvirt's commit of an image inside the chain into the one under it."""
        self.guest.domain.blockCommit(DISK, None, str(top), 0, 0)
        self.await_end()
        assert str(top) not in self.chain()

    def pull(self, base: Path | None = None) -> None:
        """libvirt's pull into the active image, of all that is under it or down to ``base``."""
        if base:
            self.guest.domain.blockRebase(DISK, str(base), 0, 0)
        else:
            self.guest.domain.blockPull(DISK, 0, 0)
        self.await_end()
        assert self.chain()[1:] == ([str(base)] if base else [])

    def copy(self, destination: Path, flags: int = 0) -> None:
        """libvirt's copy to another image, with pivot; the guest writes until then."""
        self.guest.domain.blockCopy(
            DISK,
            f"<disk type='file'><driver type='qcow2'/><source file='{destination}'/></disk>",
            {},
            flags | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB,
        )
        self.await_ready()
        self.write()
        self.pivot()
        assert self.chain()[0] == str(destination)

    def job_by_qmp(self, command: str, **arguments: Any) -> None:
        """A block job of which libvirt knows nothing, to its end."""
        self.guest.qmp(command, **{"job-id": "somebodys"}, **arguments)

        def ended() -> bool:
            job = block_jobs(self.guest).get("somebodys")
            if job and job["ready"] and job["status"] == "ready":
                self.guest.qmp("block-job-complete", device="somebodys")
            return not job

        until(ended, "the end of the job")

    def await_ready(self) -> None:
        """Until libvirt has heard that its job has copied all and now waits for the pivot."""

        def ready() -> bool:
            domain = ElementTree.fromstring(self.guest.domain.XMLDesc())
            mirror = domain.find(f"./devices/disk/target[@dev='{DISK}']/../mirror")
            return mirror is not None and mirror.get("ready") == "yes"

        until(ready, "libvirt's job to be ready")

    def pivot(self) -> None:
        """End a job that is ready: from now on its target is the disk."""
        self.guest.domain.blockJobAbort(DISK, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        self.await_end()

    def await_end(self) -> None:
        """Until libvirt's job has ended and libvirt has dealt with its end."""
        until(lambda: not self.guest.domain.blockJobInfo(DISK, 0), "the end of libvirt's job")
        until(lambda: not block_jobs(self.guest), "the end of QEMU's job")

    def internal_snapshot(self) -> libvirt.virDomainSnapshot:
        """An internal snapshot by libvirt."""
        xml = "<domainsnapshot><name>one</name></domainsnapshot>"
        return self.guest.domain.snapshotCreateXML(xml, 0)

    def use(self, image: Path, target: str = DISK) -> None:
        """Have the domain, which is off, use another image."""
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE
        domain = ElementTree.fromstring(self.guest.domain.XMLDesc(flags))
        disk = domain.find(f"./devices/disk/target[@dev='{target}']/..")
        source = disk.find("source") if disk is not None else None
        assert disk is not None
        assert source is not None
        source.set("file", str(image))
        for chain in disk.findall("backingStore"):
            disk.remove(chain)
        own(image)
        self.guest.domain.connect().defineXML(ElementTree.tostring(domain, "unicode"))

    def plug(self, image: Path, target: str, unit: int = 0) -> None:
        """Attach an image to the guest's SCSI controller."""
        own(image)
        self.guest.domain.attachDevice(
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
            f"<source file='{image}'/><target dev='{target}' bus='scsi'/>"
            f"<address type='drive' controller='0' target='0' unit='{unit}'/></disk>"
        )
        self.guest.disks[target] = DiskSpec(target, "qcow2", SIZE, bus="scsi")

    def unplug(self, target: str) -> Path:
        """Detach a SCSI disk, which needs no answer of the guest, as a PCI device does."""
        (image,) = self.chain(target)
        domain = ElementTree.fromstring(self.guest.domain.XMLDesc())
        disk = domain.find(f"./devices/disk/target[@dev='{target}']/..")
        assert disk is not None
        self.guest.domain.detachDevice(ElementTree.tostring(disk, "unicode"))
        until(lambda: target not in self.targets(), "the end of the unplugged disk")
        del self.guest.disks[target]
        return Path(image)
