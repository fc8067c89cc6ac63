"""A real guest on the local hypervisor, with its disks, for one test."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt
import libvirt_qemu

from tests.lab.domain import DiskSpec, domain_xml, give_to_qemu, own
from tests.lab.image import DEFAULT_CACHE, BootImage, boot_image
from tests.lab.monitor import Monitor
from tests.lab.qemu_log import GuestWriteFailed

__all__ = ["DiskSpec", "Guest", "GuestWriteFailed"]

# Seconds a QEMU that was told to end, or was killed, may take until libvirt says "shut off".
END_TIMEOUT = 30.0
# Seconds one agent command may take; an emulated guest that is busy writing can need some.
AGENT_TIMEOUT = 10


class Guest:
    """A defined domain with its own images in `directory`, removed again by `close()`.

    With `boot` it runs the lab's Linux, which puts ext4 on every empty disk (64 MiB or more) and
    mounts it; with `writer` too it keeps changing files there. Without `boot` it stays paused
    with no system inside: block jobs, bitmaps and `qemu_io` work all the same and cost no CPU.
    `extra_devices` is libvirt XML put under <devices>, for a CD-ROM or a disk of another kind.
    """

    def __init__(
        self,
        conn: libvirt.virConnect,
        directory: Path,
        name: str,
        disks: Sequence[DiskSpec],
        *,
        boot: bool,
        writer: bool = False,
        agent: bool = True,
        extra_devices: str = "",
        cache: Path = DEFAULT_CACHE,
    ) -> None:
        self.name = name
        self.directory = directory
        self.disks = {disk.target: disk for disk in disks}
        self.console = directory / f"{name}-console.log"
        self._boot = boot
        self._agent = agent and boot
        self._log_path = Path(f"/var/log/libvirt/qemu/{name}.log")
        give_to_qemu(directory)
        for disk in disks:
            self._create_image(disk)
        xml = domain_xml(
            name,
            [(disk, self.image(disk.target)) for disk in disks],
            console=self.console,
            boot=self._copy_system(boot_image(cache)) if boot else None,
            writer=writer,
            agent=agent,
            extra_devices=extra_devices,
        )
        try:
            self.domain = conn.defineXML(xml)
        except libvirt.libvirtError:
            self._remove_files()
            raise
        self._monitor = Monitor(self.domain, self._log_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def image(self, target: str) -> Path:
        """The image file the disk was made with; a test may since have put others over it."""
        return self.directory / f"{self.name}-{target}.{self.disks[target].format}"

    def start(self) -> None:
        """Start the domain; without a system to boot it is started paused and stays so."""
        # What an earlier start left on the console must not count for this one.
        self.console.unlink(missing_ok=True)
        self.domain.createWithFlags(0 if self._boot else libvirt.VIR_DOMAIN_START_PAUSED)

    def wait_ready(self, timeout: float = 90) -> None:
        """Wait until the disks are mounted and, if there is one, the agent answers (seconds).

        Raises RuntimeError when the guest says it failed or ends, TimeoutError when it is late.
        """
        deadline = time.monotonic() + timeout
        self._wait(self._is_up, deadline, "LAB-READY on its console")
        if self._agent:
            self._wait(self._agent_answers, deadline, "an answer of its agent")

    def ticks(self) -> int:
        """How many rounds of writing the guest has done since it was started."""
        found = re.findall(r"LAB-TICK (\d+)\s", self._console_text())
        return int(found[-1]) if found else 0

    def wait_ticks(self, count: int, timeout: float = 60) -> None:
        """Wait until the guest has done `count` rounds of writing since its start (seconds)."""
        deadline = time.monotonic() + timeout
        self._wait(lambda: self.ticks() >= count, deadline, f"round {count} of writing")

    def suspend(self) -> None:
        """Stop the guest's CPUs; its disks then change no more by itself."""
        self.domain.suspend()

    def resume(self) -> None:
        """Let a suspended guest run on."""
        self.domain.resume()

    def is_paused(self) -> bool:
        """Whether the domain is paused now."""
        return bool(self.domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)

    def is_active(self) -> bool:
        """Whether the domain has a QEMU now, running or paused."""
        return bool(self.domain.isActive())

    def power_off(self) -> None:
        """Cut the power: QEMU is ended by a signal and the guest learns nothing of it."""
        self.domain.destroy()

    def power_cycle(self) -> None:
        """Cut the power and start again from the same images."""
        self.power_off()
        self.start()

    def shutdown_clean(self) -> None:
        """End QEMU by its own `quit`, so that it stores the persistent bitmaps in the images.

        The guest's system is not asked; for it this is a power cut.
        """
        # The monitor may close before libvirt has read the reply.
        with contextlib.suppress(libvirt.libvirtError):
            self.qmp("quit")
        self._wait_shut_off()

    def kill_qemu(self) -> None:
        """SIGKILL the guest's QEMU: nothing is flushed and bitmaps are left marked in use."""
        os.kill(int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text()), signal.SIGKILL)
        self._wait_shut_off()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command and give its `return`; RuntimeError when the reply is an error."""
        return self._monitor.qmp(command, **arguments)

    def qemu_io(self, target: str, command: str) -> float:
        """Run a qemu-io command ("write -P 0x41 1M 2M") through the guest's own device.

        Gives the seconds it took. Raises GuestWriteFailed when it failed as seen by the guest.
        """
        return self._monitor.qemu_io(target, command)

    def reference(self, target: str, destination: Path) -> Path:
        """Copy the disk's present content, byte for byte, into `destination` (its own format).

        Only while paused or shut off: otherwise the guest would write during the copy, and
        RuntimeError is raised. The content is the image's, not of overlays a test put over it.
        """
        if self.is_active():
            if not self.is_paused():
                raise RuntimeError(f"{self.name} runs; suspend it before taking a reference")
            # QEMU keeps part of a qcow2's tables in memory until told.
            self.qemu_io(target, "flush")
        command = ["cp", "--sparse=always", "--reflink=auto", str(self.image(target))]
        subprocess.run([*command, str(destination)], check=True)
        return destination

    def close(self) -> None:
        """End the domain if it is active, undefine it and delete all files made for it."""
        if self.is_active():
            self.domain.destroy()
        self.domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        self._remove_files()
        self._log_path.unlink(missing_ok=True)

    def _create_image(self, disk: DiskSpec) -> None:
        image = self.image(disk.target)
        command = ["qemu-img", "create", "-q", "-f", disk.format, str(image), str(disk.size)]
        subprocess.run(command, check=True)
        own(image)

    def _copy_system(self, system: BootImage) -> BootImage:
        # The cache may lie where QEMU cannot enter, and libvirt changes owners of what it opens.
        copy = BootImage(
            kernel=self.directory / f"{self.name}-vmlinuz",
            initramfs=self.directory / f"{self.name}-initramfs.cpio",
        )
        shutil.copyfile(system.kernel, copy.kernel)
        shutil.copyfile(system.initramfs, copy.initramfs)
        return copy

    def _remove_files(self) -> None:
        for path in self.directory.glob(f"{self.name}-*"):
            path.unlink()

    def _console_text(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def _is_up(self) -> bool:
        text = self._console_text()
        failure = re.search(r"LAB-FAILED (.*\S)", text)
        if failure:
            raise RuntimeError(f"{self.name} did not come up: {failure[1]}")
        if not self.is_active():
            raise RuntimeError(f"{self.name} ended while starting; its console: {text[-2000:]}")
        return "LAB-READY" in text

    def _agent_answers(self) -> bool:
        try:
            libvirt_qemu.qemuAgentCommand(
                self.domain, '{"execute": "guest-ping"}', AGENT_TIMEOUT, 0
            )
        except libvirt.libvirtError:
            return False
        return True

    def _wait_shut_off(self) -> None:
        # QEMU's process may linger as a zombie; libvirt's word is what the next start needs.
        deadline = time.monotonic() + END_TIMEOUT
        self._wait(lambda: not self.is_active(), deadline, "the end of its QEMU")

    def _wait(self, condition: Callable[[], bool], deadline: float, what: str) -> None:
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: gave up waiting for {what}")
            time.sleep(0.05)
