"""The XML of a domain that a point is booted as: the stored one's machine, and nothing else of it.

Whatever is not named here is left out, since the XML comes out of the repository: no network, no
device or directory of the host, no other program than libvirt's own QEMU, no graphics that listens.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from virtvault.errors import WorkFailed

__all__ = ["AGENT", "Isolated", "isolated"]

AGENT = "org.qemu.guest_agent.0"
MACHINE = (
    *("memory", "currentMemory", "maxMemory", "vcpu", "iothreads", "iothreadids", "os"),
    *("features", "cpu", "clock", "pm", "sysinfo", "devices"),
)
OS = ("type", "loader", "kernel", "initrd", "cmdline", "dtb", "boot", "bootmenu", "bios", "smbios")
DEVICES = ("controller", "input", "memballoon", "rng", "panic", "iommu", "video", "memory")
VIDEO = ("vga", "virtio", "bochs", "cirrus", "ramfb")
DISK = ("target", "address", "boot", "serial", "wwn", "vendor", "product", "blockio", "geometry")
DRIVER = ("iothread", "queues", "event_idx", "ioeventfd", "packed")


@dataclass(frozen=True)
class Isolated:
    """The new XML, and whether its guest may have an agent and a screen."""

    xml: str
    agent: bool
    screen: bool


def isolated(
    stored: str,
    *,
    name: str,
    uuid: str,
    socket: Path,
    exports: Mapping[str, str],
    console: Path,
    nvram: Path,
    cpus: int,
    user: str,
) -> Isolated:
    """A domain of that name whose disks are the NBD exports at ``socket``, by target.

    :param nvram: the file for its firmware's variables; where it is not there, libvirt makes it.
    :param cpus: how many the host has; the guest gets no more.
    :param user: what QEMU is to run as, in libvirt's words (``+64055:+64055``); empty: as we do.
    :raises WorkFailed: the stored XML cannot be read.
    """
    try:
        # Entities that explode are refused by expat; nothing else of the text is acted upon.
        old = ElementTree.fromstring(stored)  # noqa: S314
    except ElementTree.ParseError as error:
        raise WorkFailed(f"The stored domain.xml cannot be read: {error}.") from error
    new = ElementTree.Element("domain", {"type": old.get("type", "qemu")})
    _text(new, "name", name)
    _text(new, "uuid", uuid)
    new.extend(part for part in old if part.tag in MACHINE)
    _machine(new, cpus)
    _firmware(new, nvram)
    if user:
        # Files get no new owner by their names in there: QEMU's user may read them already.
        label = {"type": "static", "model": "dac", "relabel": "no"}
        _text(ElementTree.SubElement(new, "seclabel", label), "label", user)
    _text(new, "on_poweroff", "destroy")
    _text(new, "on_reboot", "destroy" if old.findtext("on_reboot") == "destroy" else "restart")
    _text(new, "on_crash", "destroy")
    devices = new.find("devices")
    if devices is None:
        devices = ElementTree.SubElement(new, "devices")
    agent = any(
        target.get("name") == AGENT for target in devices.findall("./channel/target[@name]")
    )
    _devices(devices, socket, exports)
    serial = ElementTree.SubElement(devices, "serial", {"type": "file"})
    ElementTree.SubElement(serial, "source", {"path": str(console)})
    if agent:
        channel = ElementTree.SubElement(devices, "channel", {"type": "unix"})
        ElementTree.SubElement(channel, "target", {"type": "virtio", "name": AGENT})
    for parent in new.iter():
        for alias in parent.findall("alias"):
            parent.remove(alias)
    screen = devices.find("video") is not None
    return Isolated(ElementTree.tostring(new, encoding="unicode"), agent, screen)


def _machine(domain: ElementTree.Element, cpus: int) -> None:
    vcpu = domain.find("vcpu")
    if vcpu is not None:
        wanted = int(vcpu.text or 1)
        vcpu.attrib.clear()  # a place on the old host
        vcpu.text = str(min(wanted, cpus))
        cpu = domain.find("cpu")
        if wanted > cpus and cpu is not None:
            for part in (*cpu.findall("topology"), *cpu.findall("numa")):
                cpu.remove(part)
    sysinfo = domain.find("sysinfo")
    if sysinfo is not None and sysinfo.get("type") != "smbios":
        domain.remove(sysinfo)


def _firmware(domain: ElementTree.Element, nvram: Path) -> None:
    os = domain.find("os")
    if os is None:
        return
    variables = os.find("nvram")
    for part in list(os):
        if part.tag not in OS:
            os.remove(part)
    # The old domain's own file stays the old domain's; and libvirt, which is root, would copy
    # whatever file is named as a template. It knows the right one by the loader.
    if variables is not None:
        ElementTree.SubElement(os, "nvram").text = str(nvram)


def _devices(devices: ElementTree.Element, socket: Path, exports: Mapping[str, str]) -> None:
    for device in list(devices):
        target = device.find("target")
        if device.tag == "disk" and target is not None:
            if device.get("device") == "cdrom":
                _empty(device)
                continue
            if export := exports.get(target.get("dev", "")):
                _network(device, socket, export)
                continue
        if not _harmless(device):
            devices.remove(device)
    for video in devices.findall("video"):
        model = video.find("model")
        kind = model.get("type", "") if model is not None else ""
        for part in list(video):
            if part.tag != "address":
                video.remove(part)
        # Others need a display of the host to draw on.
        ElementTree.SubElement(video, "model", {"type": kind if kind in VIDEO else "vga"})


def _harmless(device: ElementTree.Element) -> bool:
    if device.tag == "input":
        return device.get("type") in ("tablet", "mouse", "keyboard")
    if device.tag == "rng":
        backend = device.find("backend")
        return backend is not None and (backend.get("model"), backend.text) == (
            "random",
            "/dev/urandom",
        )
    if device.tag == "memory":
        return device.get("model") == "dimm" and device.find("source") is None
    return device.tag in DEVICES


def _network(disk: ElementTree.Element, socket: Path, export: str) -> None:
    """Make a disk one that is read and written through NBD."""
    driver = disk.find("driver")
    kept = {
        key: value
        for key, value in (driver.attrib.items() if driver is not None else ())
        if key in DRIVER
    }
    for part in list(disk):
        if part.tag not in DISK:
            disk.remove(part)
    disk.attrib = {"type": "network", "device": "disk"}
    ElementTree.SubElement(disk, "driver", {"name": "qemu", "type": "raw", **kept})
    source = ElementTree.SubElement(disk, "source", {"protocol": "nbd", "name": export})
    ElementTree.SubElement(source, "host", {"transport": "unix", "socket": str(socket)})


def _empty(cdrom: ElementTree.Element) -> None:
    for part in list(cdrom):
        if part.tag not in ("target", "address", "boot"):
            cdrom.remove(part)
    cdrom.attrib = {"type": "file", "device": "cdrom"}


def _text(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text
