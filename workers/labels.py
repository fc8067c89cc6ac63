"""Labels of a domain, kept in its libvirt metadata so that they travel with it.

::

    <metadata>
      <virtvault:labels xmlns:virtvault="https://virtvault.org/xmlns/labels/1.0" tier="prod"/>
    </metadata>
"""

from __future__ import annotations

import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import TYPE_CHECKING

import libvirt

from virtvault.errors import InvalidRequest

if TYPE_CHECKING:
    from workers.hypervisor import Hypervisor

__all__ = ["NAMESPACE", "change", "labels_in"]

NAMESPACE = "https://virtvault.org/xmlns/labels/1.0"
# The prefix that libvirt writes it with.
KEY = "virtvault"
ELEMENT = f"{{{NAMESPACE}}}labels"
# As schemas.policies.LABEL, which a selector's labels must be: others could not be selected.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
LONGEST = 300
MOST = 64

# Who reads and then writes must be alone: two labels set at once would lose one.
_changing = threading.Lock()


def labels_in(root: ElementTree.Element) -> dict[str, str]:
    """The labels in a domain's XML; what cannot be one, whoever wrote it, is left out."""
    element = root.find(f"./metadata/{ELEMENT}")
    found = {} if element is None else dict(element.attrib)
    fine = [(name, value) for name, value in sorted(found.items()) if not _wrong(name, value)]
    return dict(fine[:MOST])


def change(hypervisor: Hypervisor, uuid: str, labels: Mapping[str, str]) -> None:
    """Set labels of a domain, in what runs and in what it will be started with.

    :param labels: an empty value removes one.
    :raises InvalidRequest: a name or a value cannot be a label, or there would be too many; nothing
        was changed.
    :raises UnknownDomain: libvirt has none of that uuid.
    """
    for name, value in labels.items():
        if value and (why := _wrong(name, value)):
            raise InvalidRequest(f"Label {name!r}: {why}.", "Mend that; nothing was changed.")
    domain = hypervisor.domain(uuid)

    def write(_: libvirt.virConnect) -> None:
        flags = []
        if domain.isPersistent():
            flags.append(libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        if domain.isActive():
            flags.append(libvirt.VIR_DOMAIN_AFFECT_LIVE)
        texts = [(flag, _changed(_metadata(domain, flag), labels)) for flag in flags]
        for flag, text in texts:
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, KEY, NAMESPACE, flag)

    with _changing:
        hypervisor.call(f"labels of domain {domain.name()}", write)


def _wrong(name: str, value: str) -> str:
    """Why it cannot be a label, empty where it can."""
    if not NAME.fullmatch(name) or name == "xmlns":
        return "a name has letters, digits, '_', '.', '-', begins with a letter or '_', at most 100"
    if not 0 < len(value) <= LONGEST or not value.isprintable():
        return f"a value has 1 to {LONGEST} printable characters, it has {len(value)}"
    return ""


def _metadata(domain: libvirt.virDomain, flag: int) -> str:
    try:
        text: str = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, flag)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
        return "<labels/>"
    return text


def _changed(text: str, labels: Mapping[str, str]) -> str | None:
    """The element with these labels, None where nothing is left of it. What else it has stays."""
    element = ElementTree.fromstring(text)  # noqa: S314  libvirt wrote it
    for name, value in labels.items():
        if value:
            element.set(name, value)
        else:
            element.attrib.pop(name, None)
    if len(element.attrib) > MOST:
        raise InvalidRequest(
            f"That would be {len(element.attrib)} labels; a domain has at most {MOST}.",
            "Remove some (`virtvault label DOMAIN name-`); nothing was changed.",
        )
    if not element.attrib and not len(element):
        return None
    return ElementTree.tostring(element, encoding="unicode")
