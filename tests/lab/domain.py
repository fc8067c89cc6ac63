"""What a lab guest is made of: its disks and the libvirt XML that says so."""

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from tests.lab.host import accelerator
from tests.lab.image import BootImage

__all__ = ["DiskSpec", "domain_xml", "give_to_qemu", "own"]

AGENT_CHANNEL = "org.qemu.guest_agent.0"


@dataclass(frozen=True)
class DiskSpec:
    """One disk of a guest; `size` in bytes, `target` libvirt's name for it (vda, sda).

    `iothread` gives a virtio or SCSI disk a thread of its own in QEMU; SATA cannot have one.
    """

    target: str
    format: Literal["qcow2", "raw"]
    size: int
    bus: Literal["virtio", "scsi", "sata"] = "virtio"
    iothread: bool = False

    def __post_init__(self) -> None:
        if self.iothread and self.bus == "sata":
            raise ValueError(f"disk {self.target}: a SATA disk cannot have an iothread")


def qemu_user() -> pwd.struct_passwd:
    """The account the system's libvirt runs QEMU as: Debian's name for it, else Fedora's."""
    for name in ("libvirt-qemu", "qemu"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("no account libvirt-qemu or qemu: is libvirt's daemon installed?")


def give_to_qemu(directory: Path) -> None:
    """Let QEMU create files in `directory`.

    libvirt changes the owner of the images it knows of, but QEMU also opens files and sockets it
    is told of over its monitor. Raises PermissionError when a parent shuts QEMU out; widening a
    parent's mode is the user's decision, not ours.
    """
    user = qemu_user()
    for parent in directory.resolve().parents:
        status = parent.stat()
        if not status.st_mode & 0o001 and status.st_uid != user.pw_uid:
            raise PermissionError(
                f"{user.pw_name} cannot enter {parent} (mode {status.st_mode & 0o7777:o}); "
                f"use a directory under /var/tmp instead of {directory}"
            )
    own(directory)
    directory.chmod(directory.stat().st_mode | 0o711)


def own(path: Path) -> None:
    """Make the QEMU user the owner of `path`; also what libvirt restores when the guest ends."""
    user = qemu_user()
    os.chown(path, user.pw_uid, user.pw_gid)


def domain_xml(
    name: str,
    disks: Sequence[tuple[DiskSpec, Path]],
    *,
    console: Path,
    boot: BootImage | None,
    writer: bool,
    agent: bool,
    extra_devices: str,
) -> str:
    """The domain's XML: no network, graphics or USB, so that it starts in a fraction of a second.

    The CPU is one that emulation can be, with an instruction for random numbers: without it mke2fs
    waits some 4 s until the guest's kernel has gathered its own.
    """
    iothreads = sum(disk.iothread for disk, _ in disks)
    return f"""
    <domain type='{accelerator()}'>
      <name>{escape(name)}</name>
      <memory unit='MiB'>{256 if boot else 128}</memory>
      <vcpu>1</vcpu>
      {f"<iothreads>{iothreads}</iothreads>" if iothreads else ""}
      <os>
        <type arch='x86_64' machine='q35'>hvm</type>
        {_boot_xml(boot, disks, writer) if boot else ""}
      </os>
      <features><acpi/></features>
      <cpu mode='custom' match='exact' check='none'>
        <model>qemu64</model>
        <feature policy='require' name='rdrand'/>
      </cpu>
      <on_reboot>destroy</on_reboot>
      <devices>
        {_disks_xml(disks)}
        <controller type='usb' model='none'/>
        <memballoon model='none'/>
        <serial type='file'><source path={quoteattr(str(console))}/></serial>
        {
        f"<channel type='unix'><target type='virtio' name='{AGENT_CHANNEL}'/></channel>"
        if agent
        else ""
    }
        {extra_devices}
      </devices>
    </domain>"""


def _boot_xml(boot: BootImage, disks: Sequence[tuple[DiskSpec, Path]], writer: bool) -> str:
    # The guest's kernel has no driver for SATA; init must not wait for those disks.
    visible = sum(disk.bus != "sata" for disk, _ in disks)
    # panic=-1 reboots at once, which ends the domain: a crash shows instead of hanging the test.
    options = f"console=ttyS0 quiet panic=-1 lab.disks={visible} lab.writer={int(writer)}"
    return f"""
        <kernel>{escape(str(boot.kernel))}</kernel>
        <initrd>{escape(str(boot.initramfs))}</initrd>
        <cmdline>{options}</cmdline>"""


def _disks_xml(disks: Sequence[tuple[DiskSpec, Path]]) -> str:
    parts: list[str] = []
    threads = 0
    for number, (disk, image) in enumerate(disks):
        threads += disk.iothread
        thread = f" iothread='{threads}'" if disk.iothread else ""
        address = ""
        if disk.bus == "scsi":
            # The thread of a SCSI disk is its controller's, so each disk has a controller.
            controller = sum(other.bus == "scsi" for other, _ in disks[:number])
            parts.append(
                f"<controller type='scsi' index='{controller}' model='virtio-scsi'>"
                f"{f'<driver{thread}/>' if thread else ''}</controller>"
            )
            address = f"<address type='drive' controller='{controller}' target='0' unit='0'/>"
            thread = ""
        parts.append(
            f"<disk type='file' device='disk'>"
            f"<driver name='qemu' type='{disk.format}' discard='unmap'{thread}/>"
            f"<source file={quoteattr(str(image))}/>"
            f"<target dev='{disk.target}' bus='{disk.bus}'/>{address}</disk>"
        )
    return "\n        ".join(parts)
