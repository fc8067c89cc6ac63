"""What of a stored domain XML may reach this host: it lies in a repository others may write to.

An allow-list, as :mod:`workers.verify_xml` has one, but for a domain that is to be as the old one
was. Left out is whatever runs a program, opens a file, device or socket of the host by name, or
chooses whom QEMU runs as; each with a note. Networks, and firmware and kernels that every user of
the host may read, stay.
"""

from __future__ import annotations

import os
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

__all__ = ["trim"]

Element = ElementTree.Element

QEMU = "{http://libvirt.org/schemas/domain/qemu"
MACHINE = (
    *("name", "uuid", "genid", "title", "description", "metadata", "devices", "os", "features"),
    *("memory", "currentMemory", "maxMemory", "memoryBacking", "memtune", "numatune", "cpu"),
    *("vcpu", "vcpus", "cputune", "iothreads", "iothreadids", "blkiotune", "clock", "pm", "perf"),
    *("on_poweroff", "on_reboot", "on_crash", "on_lockfailure", "resource", "launchSecurity"),
    *("keywrap", "throttlegroups"),
)
OS = (
    *("type", "firmware", "loader", "nvram", "kernel", "initrd", "cmdline", "dtb", "boot"),
    *("bootmenu", "bios", "smbios"),
)
FILES = ("loader", "kernel", "initrd", "dtb")
# Nothing in these names anything of the host.
PLAIN = (
    *("disk", "controller", "sound", "watchdog", "memballoon", "panic", "nvram", "iommu", "hub"),
    *("vsock", "redirfilter", "hostdev"),
)
DISK = ("type", "device", "model")
INTERFACES = ("network", "bridge", "direct", "user", "ethernet")
RUNS = ("script", "downscript", "portForward")
# Ports that libvirt or QEMU make all of themselves, or that are remade beside the images.
PORTS = ("pty", "file", "spicevmc", "spiceport", "qemu-vdagent", "null", "vc")
OURS = ("/usr/bin", "/usr/libexec", "/usr/local/bin")


def trim(root: Element, notes: list[str]) -> None:
    """Take out of a domain whatever is not to be trusted.

    :param notes: gets a line for each thing that an operator may miss.
    """
    for part in list(root):
        if part.tag.startswith(QEMU):
            _leave_out(root, part, "its own arguments and settings for QEMU are", notes)
        elif part.tag == "seclabel":
            text = "" if part.get("type") == "dynamic" else "its own security label is"
            _leave_out(root, part, text, notes)
        elif part.tag == "sysinfo":
            if part.get("type") != "smbios" or part.find(".//*[@file]") is not None:
                _leave_out(root, part, f"its sysinfo ({part.get('type')}) is", notes)
        elif part.tag not in MACHINE:
            _leave_out(root, part, f"its <{part.tag}> is", notes)
    for os_ in root.findall("os"):
        _firmware(os_, notes)
    for devices in root.findall("devices"):
        for device in list(devices):
            _device(devices, device, notes)


def _firmware(os_: Element, notes: list[str]) -> None:
    for part in list(os_):
        path = (part.text or "").strip()
        if part.tag not in OS:
            _leave_out(os_, part, f"<{part.tag}> of its <os> is", notes)
        elif part.tag in FILES and _hidden(path):
            _leave_out(os_, part, f"its {part.tag} {path}, which not everybody may read, is", notes)
            for variables in os_.findall("nvram") if part.tag == "loader" else []:
                os_.remove(variables)
        elif part.tag == "loader":
            part.set("readonly", "yes")
    for variables in os_.findall("nvram[@template]"):
        if _hidden(template := variables.get("template", "")):
            del variables.attrib["template"]
            notes.append(
                f"its NVRAM's template {template}, which not everybody may read, is left out"
            )


def _device(devices: Element, device: Element, notes: list[str]) -> None:
    rule = _RULES.get(device.tag)
    if rule is not None:
        why = rule(device, notes)
    else:
        why = "" if device.tag in PLAIN else f"its <{device.tag}> is"
    if why:
        _leave_out(devices, device, why, notes)
    elif device.tag == "emulator":
        devices.remove(device)


# -- devices: what is said of one that is left out, empty where it stays ---------------------------


def _emulator(device: Element, notes: list[str]) -> str:
    path = (device.text or "").strip()
    if str(Path(path).parent) not in OURS:
        notes.append(f"it runs with this host's QEMU, not with {path}")
    return ""


def _disk(device: Element, _notes: list[str]) -> str:
    # rawio and sgio are rights on the host.
    device.attrib = {key: device.attrib[key] for key in DISK if key in device.attrib}
    return ""


def _interface(device: Element, notes: list[str]) -> str:
    kind = device.get("type", "")
    if kind == "hostdev":
        return ""  # left out, and noted, by whoever makes the new domain
    if kind not in INTERFACES:
        return f"a network interface of type {kind} is"
    for tag in RUNS:
        for part in device.findall(tag):
            _leave_out(device, part, f"<{tag}> of a network interface is", notes)
    return ""


def _port(device: Element, notes: list[str]) -> str:
    kind, target = device.get("type", ""), device.find("target")
    for source in device.findall("source"):
        for part in list(source):
            source.remove(part)
    agent = device.tag == "channel" and target is not None and target.get("type") == "virtio"
    if kind in PORTS or (kind == "unix" and agent):
        return ""
    notes.append(f"a {device.tag} port of type {kind} is a pty now")
    for part in list(device):
        if part.tag not in ("target", "address", "alias", "log"):
            device.remove(part)
    device.attrib = {"type": "pty"}
    return ""


def _graphics(device: Element, _notes: list[str]) -> str:
    for gl in device.findall("gl"):
        gl.attrib.pop("rendernode", None)
    kind = device.get("type", "")
    return "" if kind in ("vnc", "spice", "egl-headless") else f"a display of type {kind} is"


def _video(device: Element, _notes: list[str]) -> str:
    for driver in device.findall("driver"):
        device.remove(driver)
    for acceleration in device.findall(".//acceleration"):
        acceleration.attrib.pop("rendernode", None)
    return ""


def _audio(device: Element, notes: list[str]) -> str:
    if device.get("type") not in ("none", "spice"):
        notes.append(f"its sound ({device.get('type')}) goes nowhere")
        device.attrib = {"id": device.get("id", "1"), "type": "none"}
        for part in list(device):
            device.remove(part)
    return ""


def _input(device: Element, _notes: list[str]) -> str:
    kind = device.get("type", "")
    return "" if kind in ("tablet", "mouse", "keyboard") else f"an input device ({kind}) is"


def _rng(device: Element, _notes: list[str]) -> str:
    backend = device.find("backend")
    if backend is not None and (
        backend.get("model") == "builtin"
        or (backend.get("model") == "random" and (backend.text or "").strip() in RANDOM)
    ):
        return ""
    return "a source of random numbers that is not the kernel's is"


RANDOM = ("", "/dev/urandom", "/dev/random", "/dev/hwrng")


def _tpm(device: Element, _notes: list[str]) -> str:
    backend = device.find("backend")
    if backend is None or backend.get("type") != "emulator":
        return "a TPM of the host, or of another program, is"
    for source in backend.findall("source"):
        backend.remove(source)
    return ""


def _memory(device: Element, _notes: list[str]) -> str:
    model = device.get("model", "")
    if model in ("dimm", "virtio-mem") and device.find("source/path") is None:
        return ""
    return f"a memory device ({model}) in a file is"


def _filesystem(device: Element, _notes: list[str]) -> str:
    source = device.find("source")
    shared = "" if source is None else next(iter(source.attrib.values()), "")
    return f"the host's {shared}, which it shared, is"


def _crypto(device: Element, _notes: list[str]) -> str:
    backend = device.find("backend")
    plain = backend is not None and backend.get("model") == "builtin"
    return "" if plain else "a crypto device of the host is"


def _spice_only(device: Element, _notes: list[str]) -> str:
    kind = device.get("type", "")
    return "" if kind == "spicevmc" else f"a {device.tag} of type {kind} is"


_RULES: dict[str, Callable[[Element, list[str]], str]] = {
    "emulator": _emulator,
    "disk": _disk,
    "interface": _interface,
    "serial": _port,
    "console": _port,
    "parallel": _port,
    "channel": _port,
    "graphics": _graphics,
    "video": _video,
    "audio": _audio,
    "input": _input,
    "rng": _rng,
    "tpm": _tpm,
    "memory": _memory,
    "filesystem": _filesystem,
    "crypto": _crypto,
    "redirdev": _spice_only,
    "smartcard": _spice_only,
}


# -- small things ----------------------------------------------------------------------------------


def _leave_out(parent: Element, part: Element, what: str, notes: list[str]) -> None:
    if part in list(parent):
        parent.remove(part)
    if what and (note := f"{what} left out; add it where it is wanted") not in notes:
        notes.append(note)


def _hidden(path: str) -> bool:
    """Whether a file is there that not every user of the host may read, or that is no file.

    libvirt would open it to QEMU, and the guest could read it.
    """
    if not path or not os.path.lexists(path):
        return False
    try:
        real = Path(path).resolve(strict=True)
        entry = real.stat()
        passed = all(place.stat().st_mode & stat.S_IXOTH for place in real.parents)
    except (OSError, RuntimeError):
        return True
    return not (stat.S_ISREG(entry.st_mode) and entry.st_mode & stat.S_IROTH and passed)
