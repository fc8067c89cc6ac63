"""All disks of a point show one instant, and the guest hardly notices it."""

from __future__ import annotations

import json
import struct
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import libvirt_qemu
import pytest

from tests.integration.conftest import MIB, Points, with_settings
from tests.integration.scenes import (
    assert_nothing_remains,
    bitmaps,
    committed,
    image_of,
    nodes,
    qemu_img,
    until,
)
from tests.lab import DiskSpec, Guest
from virtvault.errors import GuestAgentFailed, MonitorError, WorkFailed
from virtvault.models import BackupRequest, BackupResult
from workers import isolation
from workers.backup import backup
from workers.disks import Disk
from workers.engine import Engine, Ties
from workers.isolation import Names
from workers.monitor import Monitor

Boot = Callable[..., Guest]
TakePoints = Callable[[Guest], Points]

THREE = (
    DiskSpec("vda", "qcow2", 64 * MIB),
    DiskSpec("vdb", "raw", 64 * MIB, iothread=True),
    DiskSpec("sda", "qcow2", 64 * MIB, bus="scsi"),
)
AGENT_CHANNEL = (
    "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
)


def take(engine: Engine, guest: Guest, freeze: str = "auto") -> BackupResult:
    request = BackupRequest(domain=guest.name, freeze=freeze)
    return backup(engine, request, Ties(uuid.uuid4().hex))


def content(image: Path, offset: int, length: int) -> bytes:
    """Bytes of a disk in the repository; both numbers multiples of 512."""
    part = image.with_name("part")
    start = ["bs=512", f"skip={offset // 512}", f"count={(offset + length) // 512}"]
    qemu_img("dd", "-f", "qcow2", "-O", "raw", *start, f"if={image}", f"of={part}")
    found = part.read_bytes()
    part.unlink()
    return found


def needs_recovery(image: Path) -> bool:
    """ext4's flag that the journal has to be replayed; a frozen file system has it cleared.

    Kernel documentation, ext4 super block: s_feature_incompat at 0x60, INCOMPAT_RECOVER 0x4.
    """
    block = content(image, 1024, 1024)
    (magic,) = struct.unpack_from("<H", block, 0x38)
    assert magic == 0xEF53
    (incompatible,) = struct.unpack_from("<I", block, 0x60)
    return bool(incompatible & 0x4)


def test_an_agent_freezes_the_file_systems_for_the_instant_and_they_are_thawed_again(
    boot: Boot, engine: Engine
) -> None:
    guest = boot(*THREE, boot=True, writer=True)
    guest.wait_ready()
    guest.wait_ticks(2)
    frozen = take(engine, guest)
    assert (frozen.consistency, frozen.notes) == ("agent-frozen", ())
    assert 0 < frozen.paused_ms < 1000
    assert frozen.paused_ms < frozen.frozen_ms
    status = libvirt_qemu.qemuAgentCommand(
        guest.domain, json.dumps({"execute": "guest-fsfreeze-status"}), 10, 0
    )
    assert json.loads(status)["return"] == "thawed"
    guest.wait_ticks(guest.ticks() + 2)
    crash = take(engine, guest, "never")
    assert (crash.consistency, crash.frozen_ms) == ("crash-consistent", 0.0)
    assert 0 < crash.paused_ms < 1000
    print(f"paused {frozen.paused_ms} and {crash.paused_ms} ms, frozen {frozen.frozen_ms} ms")
    for target in guest.disks:
        assert not needs_recovery(image_of(engine, frozen, target))
        assert needs_recovery(image_of(engine, crash, target))
    assert_nothing_remains(engine, guest)


@pytest.mark.parametrize("devices", ["", AGENT_CHANNEL], ids=["no channel", "nobody answers"])
def test_without_an_agent_a_demanded_freeze_fails_and_nothing_was_done(
    boot: Boot, engine: Engine, devices: str
) -> None:
    guest = boot(*THREE, extra_devices=devices)
    guest.resume()
    before = (nodes(guest), bitmaps(guest), committed(engine))
    with pytest.raises(GuestAgentFailed, match="freeze was demanded") as caught:
        take(engine, guest, "always")
    assert caught.value.mend
    assert (nodes(guest), bitmaps(guest), committed(engine)) == before
    assert guest.qmp("query-status")["running"]
    assert_nothing_remains(engine, guest)
    result = take(engine, guest, "auto")
    assert result.consistency == "crash-consistent"
    assert len(result.notes) == (1 if devices else 0)


def test_a_guest_that_was_paused_stays_paused(boot: Boot, engine: Engine) -> None:
    guest = boot(*THREE)
    result = take(engine, guest)
    assert guest.qmp("query-status")["status"] in ("prelaunch", "paused")
    assert (result.consistency, result.paused_ms) == ("crash-consistent", 0.0)


class Counting(threading.Thread):
    """A guest of one thought: 1 to vda, 1 to sda, 2 to vda, 2 to sda, … while its CPUs run.

    Before each write it looks whether they do, so that a stopped guest has at most one more
    write on its way, as a real one has.
    """

    def __init__(self, guest: Guest) -> None:
        super().__init__(name="counting guest")
        self.guest = guest
        self.done = threading.Event()
        self.written = 0
        self.seen_stopped = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            for target in ("vda", "sda"):
                while not self.guest.qmp("query-status")["running"]:
                    self.seen_stopped.set()
                    if self.done.wait(0.005):
                        return
                value = self.written // 2 % 250 + 1
                self.guest.qemu_io(target, f"write -P {value} 1M 512")
                self.written += 1


def test_no_disk_of_a_point_is_later_than_another(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(*THREE)
    guest.resume()
    writer = Counting(guest)
    swap_in = isolation.swap_in
    waited: list[int] = []

    def slowly(monitor: Monitor, disk: Disk, names: Names) -> None:
        """Leave the guest the time to write to two disks between the swaps, if it can."""
        swap_in(monitor, disk, names)
        writer.seen_stopped.clear()
        at = writer.written
        until(lambda: writer.seen_stopped.is_set() or writer.written > at + 2, "a try", 1)
        waited.append(writer.written - at)

    monkeypatch.setattr(isolation, "swap_in", slowly)
    patient = with_settings(engine, guard_seconds=10.0)
    writer.start()
    try:
        for _ in range(3):
            until(lambda at=writer.written: writer.written > at + 5, "the guest to write")  # type: ignore[misc]
            result = take(patient, guest)
            first, second = (
                content(image_of(engine, result, target), MIB, 512)[-1] for target in ("vda", "sda")
            )
            assert first - second in (0, 1)
    finally:
        writer.done.set()
        writer.join()
    assert max(waited) <= 1
    assert_nothing_remains(engine, guest)


def test_a_guest_that_is_resumed_in_the_middle_of_the_instant_gets_no_point(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(*THREE)
    guest.resume()
    swap_in = isolation.swap_in

    def too_slowly(monitor: Monitor, disk: Disk, names: Names) -> None:
        swap_in(monitor, disk, names)
        until(lambda: guest.qmp("query-status")["running"], "the guard to resume the guest", 5)

    monkeypatch.setattr(isolation, "swap_in", too_slowly)
    with pytest.raises(WorkFailed, match="no common instant") as caught:
        take(with_settings(engine, guard_seconds=0.3), guest)
    assert caught.value.mend
    assert guest.qmp("query-status")["running"]
    assert (bitmaps(guest), committed(engine)) == ({}, [])
    assert_nothing_remains(engine, guest)


def test_a_swap_that_fails_half_way_is_put_back_and_the_guest_runs(
    boot: Boot, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = boot(*THREE)
    guest.resume()
    swap_in = isolation.swap_in

    def fails(monitor: Monitor, disk: Disk, names: Names) -> None:
        if disk.target == "vdb":
            raise MonitorError("QEMU refused qom-set")
        swap_in(monitor, disk, names)

    monkeypatch.setattr(isolation, "swap_in", fails)
    with pytest.raises(MonitorError):
        take(engine, guest)
    assert guest.qmp("query-status")["running"]
    assert (bitmaps(guest), committed(engine)) == ({}, [])
    assert_nothing_remains(engine, guest)
