"""Domains of our own making: defined, started, and taken away again by their uuid."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import libvirt

from virtvault.errors import (
    DestinationExists,
    DomainStopped,
    MonitorError,
    NotReachable,
    UnknownDomain,
    VirtvaultError,
    WorkFailed,
)
from workers import domain_xml
from workers.hypervisor import START_SECONDS, Hypervisor

__all__ = [
    "define",
    "end",
    "is_defined",
    "qemu_user",
    "require_free_name",
    "resume_after_fault",
    "rewrite",
    "rewrite_saved",
    "start",
    "try_definition",
    "undefine",
    "why_images_are_kept",
]


def qemu_user(hypervisor: Hypervisor, kind: str) -> int:
    """The uid that QEMU runs as here, for domains of type ``kvm`` or ``qemu``; root where none."""
    text = hypervisor.call("capabilities", lambda c: str(c.getCapabilities()))
    return domain_xml.qemu_user(text, kind)


def require_free_name(hypervisor: Hypervisor, name: str) -> None:
    """:raises DestinationExists: a domain of this host has it."""
    if any(domain.name == name for domain in hypervisor.domains()):
        raise DestinationExists(
            f"Hypervisor {hypervisor.settings.host} has a domain {name!r} already.",
            "Choose another name.",
        )


def try_definition(hypervisor: Hypervisor, xml: str, uuid: str) -> None:
    """See whether libvirt takes a definition: it is made, and taken back at once.

    :raises WorkFailed: it does not; libvirt's reason is quoted.
    """
    define(hypervisor, xml)
    undefine(hypervisor, uuid)


def define(hypervisor: Hypervisor, xml: str) -> None:
    """Define a domain, or again the one of the same uuid.

    :raises WorkFailed: libvirt does not take it; its reason is quoted.
    """
    try:
        hypervisor.call("definition of the domain", lambda c: c.defineXML(xml))
    except (MonitorError, DomainStopped, NotReachable) as error:
        raise WorkFailed(
            f"libvirt of {hypervisor.settings.host} does not take the new domain: "
            f"{_reason(error)}.",
            "Restore the disks into a directory (--to) and define the domain by hand: its XML is "
            "domain.xml beside the point's images.",
        ) from error


def rewrite(hypervisor: Hypervisor, before: str, after: str) -> None:
    """Define a domain anew where its XML has changed."""
    if ElementTree.canonicalize(before) != ElementTree.canonicalize(after):
        define(hypervisor, after)


def rewrite_saved(hypervisor: Hypervisor, uuid: str, change: Callable[[str], str]) -> None:
    """Change the XML that a domain's saved memory is started with, where it has any."""

    def change_it(connection: libvirt.virConnect) -> None:
        domain = connection.lookupByUUIDString(uuid)
        if domain.hasManagedSaveImage():
            xml = domain.managedSaveGetXMLDesc(libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
            domain.managedSaveDefineXML(change(xml))

    hypervisor.call("change of the saved domain", change_it)


def is_defined(hypervisor: Hypervisor, uuid: str) -> bool:
    """Whether the domain is there, running or not."""
    try:
        hypervisor.domain(uuid)
    except UnknownDomain:
        return False
    return True


def start(hypervisor: Hypervisor, uuid: str) -> None:
    """Start a domain; one that runs already is left alone.

    :raises WorkFailed: it does not start; libvirt's reason is quoted.
    """
    if hypervisor.is_active(uuid):
        return
    try:
        hypervisor.call(
            "start of the domain", lambda c: c.lookupByUUIDString(uuid).create(), START_SECONDS
        )
    except (MonitorError, DomainStopped, NotReachable) as error:
        raise WorkFailed(
            f"The new domain does not start: {_reason(error)}.",
            "See its log in /var/log/libvirt/qemu.",
        ) from error


def end(hypervisor: Hypervisor, uuid: str) -> None:
    """Cut a domain's power, where it runs."""
    with contextlib.suppress(DomainStopped):
        hypervisor.call("end of the domain", lambda c: c.lookupByUUIDString(uuid).destroy())


def undefine(hypervisor: Hypervisor, uuid: str) -> None:
    """Forget a domain, if it is there; its files stay."""
    # Without flags libvirt refuses where it has one of these.
    flags = (
        libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    )
    with contextlib.suppress(DomainStopped):
        hypervisor.call(
            "end of the definition", lambda c: c.lookupByUUIDString(uuid).undefineFlags(flags)
        )


def resume_after_fault(hypervisor: Hypervisor, uuid: str) -> bool:
    """Let a guest run on that stands because of an I/O error; gives whether it stood so."""

    def resume(connection: libvirt.virConnect) -> bool:
        domain = connection.lookupByUUIDString(uuid)
        stands = domain.state()[:2] == [
            libvirt.VIR_DOMAIN_PAUSED,
            libvirt.VIR_DOMAIN_PAUSED_IOERROR,
        ]
        if stands:
            domain.resume()
        return bool(stands)

    try:
        return hypervisor.call("resume of the domain", resume)
    except VirtvaultError:  # looked at again at the next poll
        return False


def why_images_are_kept(hypervisor: Hypervisor, uuid: str) -> str:
    """Why the images of a shut-off domain must not be replaced by others; empty where they may."""

    def look(connection: libvirt.virConnect) -> str:
        domain = connection.lookupByUUIDString(uuid)
        if domain.hasManagedSaveImage():
            return (
                "its memory is saved (managedsave) and belongs to the disks as they are: start it, "
                f"or give the memory up with `virsh managedsave-remove {domain.name()}`"
            )
        if count := domain.snapshotNum():
            return (
                f"it has {count} snapshots, whose data would go with its images: delete them "
                f"(`virsh snapshot-list {domain.name()}`)"
            )
        return ""

    return hypervisor.call("look at the domain", look)


def _reason(error: VirtvaultError) -> str:
    """What libvirt said: of a missing file it says so in the words for a connection's end."""
    cause = error.__cause__
    if isinstance(cause, libvirt.libvirtError):
        return str(cause.get_error_message()).rstrip(".")
    return error.message.rstrip(".")
