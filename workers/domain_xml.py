"""A new domain from the XML that a point has stored: pure, from text to text.

What must not exist twice (name, uuid, MAC addresses, generation id) is new or left for libvirt to
make; what was true only of the domain that ran (aliases, labels, ports, sockets) goes; addresses
stay, so that the guest finds its devices where they were. What is left out or lost is noted.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.domain_trust import trim

__all__ = [
    "NewDisk",
    "domain_type",
    "image_indexes",
    "encrypted_in",
    "nvram_of",
    "policies_of",
    "qemu_user",
    "redefine",
    "settled",
]

# What of the old source says how to get at the old data.
OF_THE_OLD_IMAGE = (
    "source",
    "backingStore",
    "mirror",
    "auth",
    "encryption",
    "transient",
    "blockio",
)
# With an image that is served, a fault of the server stops the guest instead of reaching it.
POLICIES = {"error_policy": "stop", "rerror_policy": "stop"}


@dataclass(frozen=True)
class NewDisk:
    """Where a disk is now: a file, or the block ``device`` at ``path``.

    ``served`` is the unix socket of the NBD export, named as the target, that an overlay needs.
    """

    path: str
    format: str
    device: bool = False
    served: str = ""


def redefine(
    xml: str, *, name: str, uuid: str, disks: Mapping[str, NewDisk], directory: str, nvram: str
) -> tuple[str, list[str]]:
    """The definition of a new domain, and what an operator should know of it.

    :param xml: of the domain at the point's instant.
    :param disks: the restored ones by target.
    :param directory: where new log files and the like may lie.
    :param nvram: the file its firmware variables are in, where it has any.
    """
    root = ElementTree.fromstring(xml)
    notes: list[str] = []
    root.attrib.pop("id", None)
    trim(root, notes)
    _text(root, "name", name)
    _text(root, "uuid", uuid)
    for genid in root.findall("genid"):
        genid.text = None
    for entry in root.findall("./sysinfo/system/entry[@name='uuid']"):
        entry.text = uuid
    if (element := root.find("./os/nvram")) is not None:
        for child in list(element):
            element.remove(child)
        element.attrib.pop("type", None)
        element.text = nvram
    devices = root.find("devices")
    if devices is None:
        devices = ElementTree.SubElement(root, "devices")
    for parent in [devices, *devices]:
        for alias in parent.findall("alias"):
            if not alias.get("name", "").startswith("ua-"):
                parent.remove(alias)
    for element in list(devices):
        if element.tag == "disk":
            _disk(devices, element, disks, notes)
        elif change := _CHANGES.get(element.tag):
            change(devices, element, f"{directory}/{name}", notes)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode"), notes


def settled(xml: str, policies: Mapping[str, Mapping[str, str]]) -> str:
    """A definition whose disks in ``policies`` stand alone, with these error policies again.

    :param policies: by target the attributes that its driver had; none for QEMU's defaults.
    """
    root = ElementTree.fromstring(xml)
    for element in root.findall("./devices/disk"):
        target = _attribute(element, "target", "dev")
        if target not in policies:
            continue
        for backing in element.findall("backingStore"):
            element.remove(backing)
        if (driver := element.find("driver")) is not None:
            for policy in POLICIES:
                driver.attrib.pop(policy, None)
            driver.attrib.update(policies[target])
    return ElementTree.tostring(root, encoding="unicode")


def policies_of(xml: str, targets: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """The error policies of disks, for :func:`settled`."""
    found = {}
    for element in ElementTree.fromstring(xml).findall("./devices/disk"):
        target, driver = _attribute(element, "target", "dev"), element.find("driver")
        if target in targets:
            attributes = {} if driver is None else driver.attrib
            found[target] = {key: attributes[key] for key in POLICIES if key in attributes}
    return found


def encrypted_in(xml: str) -> set[str]:
    """The targets of the disks whose images are encrypted."""
    return {
        _attribute(element, "target", "dev")
        for element in ElementTree.fromstring(xml).findall("./devices/disk")
        if element.find("encryption") is not None or element.find("source/encryption") is not None
    }


def nvram_of(xml: str) -> str:
    """The file of a domain's firmware variables; empty where it has none, or not as a file."""
    element = ElementTree.fromstring(xml).find("./os/nvram")
    if element is None:
        return ""
    source = element.find("source")
    return (element.text or "").strip() or (source.get("file", "") if source is not None else "")


def domain_type(xml: str) -> str:
    """``kvm`` or ``qemu``."""
    return ElementTree.fromstring(xml).get("type", "kvm")


def image_indexes(xml: str, path: str) -> tuple[str, str]:
    """libvirt's numbers of an image and of the one below it, wherever in a running domain's disks.

    Empty where the image, or anything below it, is none of the domain's.
    """
    root = ElementTree.fromstring(xml)
    for layer in [*root.findall("./devices/disk"), *root.iterfind("./devices/disk//backingStore")]:
        source, below = layer.find("source"), layer.find("backingStore")
        if source is not None and source.get("file") == path:
            own = source if layer.tag == "disk" else layer
            return own.get("index", ""), "" if below is None else below.get("index", "")
    return "", ""


def qemu_user(capabilities: str, kind: str) -> int:
    """The uid that QEMU runs as, by libvirt's capabilities; root where they do not say.

    :param kind: the domain's, ``kvm`` or ``qemu``.
    """
    for model in ElementTree.fromstring(capabilities).findall("./host/secmodel"):
        if model.findtext("model") == "dac":
            for label in model.findall("baselabel"):
                user = (label.text or "").partition(":")[0].removeprefix("+")
                if label.get("type") == kind and user.isdigit():
                    return int(user)
    return 0


# -- disks -----------------------------------------------------------------------------------------


def _disk(
    devices: ElementTree.Element,
    element: ElementTree.Element,
    disks: Mapping[str, NewDisk],
    notes: list[str],
) -> None:
    target = _attribute(element, "target", "dev")
    new = disks.get(target)
    if new is not None:
        _new_source(element, new, notes)
    elif element.get("device", "disk") in ("cdrom", "floppy"):
        if element.find("source") is not None:
            notes.append(f"{target}: the {element.get('device')} drive is empty now")
        _drop(element, *OF_THE_OLD_IMAGE)
    else:
        notes.append(f"{target}: not restored, so the new domain has no such disk")
        devices.remove(element)


def _new_source(element: ElementTree.Element, new: NewDisk, notes: list[str]) -> None:
    target = _attribute(element, "target", "dev")
    if element.find("encryption") is not None or element.find("source/encryption") is not None:
        notes.append(f"{target}: was encrypted; what was restored is not")
    _drop(element, *OF_THE_OLD_IMAGE)
    if element.find("shareable") is not None:
        _drop(element, "shareable")
        notes.append(f"{target}: was shared with other domains; the restored one is not")
    driver = element.find("driver")
    if driver is None:
        driver = ElementTree.Element("driver")
        element.insert(0, driver)
    driver.set("name", "qemu")
    driver.set("type", new.format)
    driver.attrib.pop("metadata_cache", None)
    element.set("type", "block" if new.device else "file")
    element.attrib.pop("snapshot", None)
    source = ElementTree.Element("source", {"dev" if new.device else "file": new.path})
    element.insert(1, source)
    if new.served:
        driver.attrib.update(POLICIES)
        element.insert(2, _served(target, new.served))


def _served(target: str, socket: str) -> ElementTree.Element:
    backing = ElementTree.Element("backingStore", {"type": "network"})
    ElementTree.SubElement(backing, "format", {"type": "raw"})
    source = ElementTree.SubElement(backing, "source", {"protocol": "nbd", "name": target})
    ElementTree.SubElement(source, "host", {"transport": "unix", "socket": socket})
    ElementTree.SubElement(backing, "backingStore")
    return backing


# -- other devices ---------------------------------------------------------------------------------


def _interface(
    devices: ElementTree.Element, element: ElementTree.Element, _prefix: str, notes: list[str]
) -> None:
    if element.get("type") == "hostdev":
        notes.append("a passed-through network interface is left out; add it where it is wanted")
        devices.remove(element)
        return
    _drop(element, "mac", "target", "backend")
    for source in element.findall("source"):
        source.attrib.pop("portid", None)
    for parameters in element.findall("./virtualport/parameters"):
        # Of the port, not of the network: libvirt makes new ones.
        for unique in ("interfaceid", "instanceid"):
            parameters.attrib.pop(unique, None)


def _hostdev(
    devices: ElementTree.Element, element: ElementTree.Element, _prefix: str, notes: list[str]
) -> None:
    notes.append(
        f"a passed-through host device ({element.get('type', element.get('mode', ''))}) is left "
        "out; add it where it is wanted"
    )
    devices.remove(element)


def _character(
    _devices: ElementTree.Element, element: ElementTree.Element, prefix: str, notes: list[str]
) -> None:
    kind, source = element.get("type"), element.find("source")
    element.attrib.pop("tty", None)
    for log in element.findall("log"):
        log.set("file", _beside(prefix, log.get("file", "")))
    if source is None:
        return
    if kind == "pty" or (kind == "unix" and element.tag == "channel"):
        element.remove(source)
    elif kind == "file":
        # Two domains cannot log to one file.
        source.set("path", _beside(prefix, source.get("path", "")))
        notes.append(f"a {element.tag} port writes to {source.get('path')}")


def _graphics(
    _devices: ElementTree.Element, element: ElementTree.Element, _prefix: str, notes: list[str]
) -> None:
    if element.get("autoport") == "no" and element.get("port"):
        notes.append(f"its {element.get('type')} port {element.get('port')} is chosen anew")
    for port in ("port", "tlsPort", "websocket", "socket"):
        element.attrib.pop(port, None)
    if element.get("type") in ("vnc", "spice", "rdp"):
        element.set("autoport", "yes")
    for listen in element.findall("listen"):
        if listen.get("type") == "socket":
            listen.attrib.pop("socket", None)


def _tpm(
    _devices: ElementTree.Element, _element: ElementTree.Element, _prefix: str, notes: list[str]
) -> None:
    notes.append(
        "its TPM begins empty: what the old one had sealed (BitLocker, LUKS) asks for its recovery "
        "key"
    )


def _vsock(
    _devices: ElementTree.Element, element: ElementTree.Element, _prefix: str, notes: list[str]
) -> None:
    for cid in element.findall("cid"):
        if cid.get("auto") != "yes":
            notes.append(f"its vsock address {cid.get('address')} is chosen anew")
        cid.set("auto", "yes")
        cid.attrib.pop("address", None)


_CHANGES = {
    "interface": _interface,
    "hostdev": _hostdev,
    "serial": _character,
    "console": _character,
    "parallel": _character,
    "channel": _character,
    "graphics": _graphics,
    "tpm": _tpm,
    "vsock": _vsock,
}


# -- small things ----------------------------------------------------------------------------------


def _text(root: ElementTree.Element, tag: str, text: str) -> None:
    element = root.find(tag)
    if element is None:
        element = ElementTree.Element(tag)
        root.insert(0, element)
    element.text = text


def _attribute(element: ElementTree.Element, child: str, name: str) -> str:
    found = element.find(child)
    return "" if found is None else found.get(name, "")


def _drop(element: ElementTree.Element, *tags: str) -> None:
    for tag in tags:
        for child in element.findall(tag):
            element.remove(child)


def _beside(prefix: str, path: str) -> str:
    return f"{prefix}-{Path(path).name}"
