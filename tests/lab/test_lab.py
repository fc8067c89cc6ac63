"""The lab itself: what the other tests rely on holds on this machine."""

import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab import (
    DiskSpec,
    Guest,
    GuestWriteFailed,
    Hypervisor,
    RedisServer,
    assert_same,
)
from tests.lab.ceph import Ceph
from workers.storage_daemon import StorageDaemon

MIB = 1024 * 1024


@pytest.fixture
def directory() -> Iterator[Path]:
    # Under /var/tmp, since QEMU runs as a user who cannot enter pytest's own tmp_path.
    with tempfile.TemporaryDirectory(prefix="vvlab-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture(scope="module")
def conn() -> Iterator[libvirt.virConnect]:
    with Hypervisor() as hypervisor:
        connection = hypervisor.connect()
        yield connection
        connection.close()


def test_guest_boots_writes_and_obeys_freeze(conn: libvirt.virConnect, directory: Path) -> None:
    disks = [
        DiskSpec("vda", "qcow2", 256 * MIB),
        DiskSpec("vdb", "raw", 64 * MIB, iothread=True),
        DiskSpec("sda", "qcow2", 64 * MIB, bus="scsi", iothread=True),
    ]
    with Guest(conn, directory, "vvlab-boots", disks, boot=True, writer=True) as guest:
        guest.start()
        guest.wait_ready()
        guest.wait_ticks(2)

        assert guest.domain.fsFreeze() == len(disks)
        frozen_at = guest.ticks()
        with pytest.raises(TimeoutError):
            # One more may be on its way to the console; a second cannot be.
            guest.wait_ticks(frozen_at + 2, timeout=3)
        assert guest.domain.fsThaw() == len(disks)
        guest.wait_ticks(frozen_at + 2)

        # A power cut leaves file systems that the next start mounts, not makes anew.
        before = filesystem_uuid(guest.image("vdb"))
        guest.power_cycle()
        guest.wait_ready()
        assert filesystem_uuid(guest.image("vdb")) == before


def filesystem_uuid(raw_image: Path) -> bytes:
    with raw_image.open("rb") as file:
        # ext4's superblock is at 1 KiB, its UUID 104 bytes into it.
        file.seek(1024 + 104)
        return file.read(16)


@pytest.mark.parametrize(
    "disk",
    [
        DiskSpec("vda", "qcow2", 64 * MIB),
        DiskSpec("vda", "raw", 64 * MIB, iothread=True),
        DiskSpec("sda", "qcow2", 64 * MIB, bus="scsi"),
        DiskSpec("sda", "raw", 64 * MIB, bus="sata"),
    ],
    ids=lambda disk: f"{disk.bus}-{disk.format}",
)
def test_write_shows_in_reference(
    conn: libvirt.virConnect, directory: Path, disk: DiskSpec
) -> None:
    with Guest(conn, directory, "vvlab-writes", [disk], boot=False) as guest:
        guest.start()
        empty = guest.reference(disk.target, directory / "empty")
        guest.qemu_io(disk.target, "write -P 0x41 1M 2M")
        written = guest.reference(disk.target, directory / "written")

        assert_same(guest.image(disk.target), disk.format, written, disk.format)
        with pytest.raises(AssertionError, match=f"offset {MIB}"):
            assert_same(empty, disk.format, written, disk.format)

        guest.qemu_io(disk.target, "write -z 1M 1M")
        guest.qemu_io(disk.target, "discard 2M 1M")
        zeroed = guest.reference(disk.target, directory / "zeroed")
        assert_same(empty, disk.format, zeroed, disk.format)


def test_failed_write_raises_and_next_one_works(conn: libvirt.virConnect, directory: Path) -> None:
    disk = DiskSpec("vda", "qcow2", 64 * MIB)
    with Guest(conn, directory, "vvlab-fails", [disk], boot=False) as guest:
        guest.start()
        with pytest.raises(GuestWriteFailed, match="Input/output error"):
            guest.qemu_io("vda", "write 1G 64k")
        assert guest.qemu_io("vda", "write 1M 64k") > 0
        with pytest.raises(RuntimeError, match="CommandNotFound"):
            guest.qmp("no-such-command")


def test_quit_stores_bitmaps_and_a_kill_does_not(conn: libvirt.virConnect, directory: Path) -> None:
    with Guest(
        conn, directory, "vvlab-ends", [DiskSpec("vda", "qcow2", 64 * MIB)], boot=False
    ) as guest:
        guest.start()
        node = block_of(guest)["inserted"]["node-name"]
        guest.qmp("block-dirty-bitmap-add", node=node, name="kept", persistent=True)
        guest.shutdown_clean()
        guest.start()
        assert [bitmap["name"] for bitmap in block_of(guest)["inserted"]["dirty-bitmaps"]] == [
            "kept"
        ]
        guest.kill_qemu()
        guest.start()
        (left,) = block_of(guest)["inserted"]["dirty-bitmaps"]
        assert left["inconsistent"]


def block_of(guest: Guest) -> dict[str, Any]:
    (block,) = guest.qmp("query-block")
    return dict(block)


def test_redis_keeps_data_over_restart_and_kill(directory: Path) -> None:
    with RedisServer(directory / "redis") as server, server.client() as client:
        client.set("a", 1)
        server.stop()
        server.start()
        assert client.get("a") == b"1"
        client.set("b", 2)
        server.kill()
        server.start()
        assert client.get("b") == b"2"
        server.freeze()
        server.thaw()
        server.flush()
        assert client.dbsize() == 0
    assert not (directory / "redis").exists()


def test_rbd_image_holds_what_qemu_wrote(directory: Path) -> None:
    size = 10 * MIB  # two whole RADOS objects and a part of a third
    written = bytearray(size)
    written[3 * MIB : 5 * MIB] = b"\x41" * (2 * MIB)
    written[size - 4096 :] = b"\x42" * 4096
    with Ceph(directory / "ceph") as ceph:
        ceph.create("disk", size)
        assert ceph.read("disk") == hashlib.sha256(bytes(size)).hexdigest()

        write_through_rbd(ceph, directory, "write -P 0x41 3M 2M", f"write -P 0x42 {size - 4096} 4k")
        exported = directory / "exported"
        ceph.rbd("export", "--no-progress", f"{ceph.pool}/disk", str(exported))
        assert exported.read_bytes() == written
        assert ceph.read("disk") == hashlib.sha256(written).hexdigest()

        ceph.remove("disk")
        with pytest.raises(RuntimeError, match="No such file or directory"):
            ceph.read("disk")
    left = subprocess.run(["pgrep", "-af", str(ceph.conf)], capture_output=True, check=False)
    assert left.stdout == b""


def write_through_rbd(ceph: Ceph, directory: Path, *commands: str) -> None:
    """Let qemu-io write to the image `disk` as a storage daemon has it open."""
    daemon = StorageDaemon(directory / "daemon")
    daemon.start(ends_with_us=True)
    try:
        monitor = daemon.monitor(30)
        image = {"pool": ceph.pool, "image": "disk", "conf": str(ceph.conf)}
        monitor.execute("blockdev-add", driver="rbd", node_name="disk", **image)
        socket = str(directory / "nbd.sock")
        monitor.execute("nbd-server-start", addr={"type": "unix", "data": {"path": socket}})
        monitor.execute(
            "block-export-add", type="nbd", id="disk", node_name="disk", name="disk", writable=True
        )
        monitor.close()
        url = f"nbd+unix:///disk?socket={socket}"
        for command in commands:
            subprocess.run(
                ["qemu-io", "-f", "raw", "-c", command, url],
                check=True,
                timeout=60,
                capture_output=True,
            )
    finally:
        daemon.end()
