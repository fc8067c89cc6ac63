"""``virtvault hosts``, ``domains``, ``disks``: what there is to back up."""

from __future__ import annotations

from collections.abc import Sequence

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option

__all__ = ["hosts", "domains", "disks"]


@click.command()
@json_option
def hosts(as_json: bool) -> None:
    """List the hypervisors and whether their workers live."""
    found = connect().hosts()
    if as_json:
        output.document(found)
        return
    output.table(
        ("HOST", "WORKER", "SEEN", "LIBVIRT", "QEMU", ">DOMAINS", "REPOSITORIES"),
        (
            (
                host.host,
                "alive" if host.alive else "silent",
                output.instant(host.seen),
                host.libvirt or "-",
                host.qemu or "-",
                str(host.domains),
                ", ".join(host.repositories) or "-",
            )
            for host in found
        ),
        empty="No hypervisor has been seen. Start one with `virtvault up` or `virtvault worker`.",
    )


@click.command()
@click.option("--host", default="", help="Only this hypervisor.")
@json_option
def domains(host: str, as_json: bool) -> None:
    """List the domains of all hypervisors that answer."""
    found = connect().domains(host)
    if as_json:
        output.document(found)
        return
    output.table(
        ("DOMAIN", "HOST", "STATE", ">DISKS", "UUID"),
        ((d.name, d.host, d.state, str(d.disks), d.uuid) for d in found),
        empty="No domains.",
    )


@click.command()
@click.argument("domain")
@json_option
def disks(domain: str, as_json: bool) -> None:
    """List the disks of DOMAIN (a name, a uuid, or host/name) and which can be backed up."""
    found = connect().disks(domain)
    if as_json:
        output.document(found)
        return
    output.table(
        ("DISK", "BUS", "FORMAT", ">SIZE", "BACKUP", "BITMAPS", "SOURCE"),
        (
            (
                disk.target,
                disk.bus,
                disk.format,
                output.size(disk.virtual_size),
                f"no: {disk.skip}" if disk.skip else _incrementals(disk.persistent_bitmaps),
                _owners(disk.bitmaps),
                disk.source,
            )
            for disk in found
        ),
        empty="No disks.",
    )


def _owners(bitmaps: Sequence[str]) -> str:
    """Ours in one word: `virtvault bitmaps list` tells each."""
    others = [name for name in bitmaps if not name.startswith("virtvault.")]
    ours = ["virtvault"] if len(others) < len(bitmaps) else []
    return ", ".join([*ours, *others]) or "-"


def _incrementals(persistent: bool) -> str:
    return "yes" if persistent else "yes; a full after each power cycle"
