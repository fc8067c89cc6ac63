"""``virtvault hosts``, ``domains``, ``disks``: what there is to back up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import click

from virtvault.cli import output
from virtvault.cli.options import connect, json_option
from virtvault.models import RepositoryInfo
from virtvault.whereabouts import UNKNOWN, UNREACHABLE

__all__ = ["hosts", "domains", "disks", "label_wanted", "labels_fit"]


@click.command()
@json_option
def hosts(as_json: bool) -> None:
    """List the hypervisors: which live, what they have, how much room their repositories have."""
    found = connect().hosts()
    if as_json:
        output.document(found)
        return
    output.table(
        ("HOST", "WORKER", "SEEN", "LIBVIRT", "QEMU", ">DOMAINS", "REPOSITORIES"),
        (
            (
                host.host,
                "alive" if host.alive else "gone",
                output.instant(host.seen),
                host.libvirt or "-",
                host.qemu or "-",
                str(host.domains),
                ", ".join(map(_room, host.storage)) or "-",
            )
            for host in found
        ),
        empty="No hypervisor has been seen. Start one with `virtvault up` or `virtvault worker`.",
    )
    for host in found:
        if not host.alive:
            since = output.instant(host.seen)
            output.note(f"{host.host}: gone since {since}; what is shown is what it said last.")
        elif host.trouble:
            output.note(f"{host.host}: {host.trouble} Its domains are as they were known last.")
        for one in host.storage:
            if host.alive and one.why:
                output.note(f"{host.host}: repository {one.name}: {one.why}")


@click.command()
@click.option("--host", default="", help="Only this hypervisor, asked just now.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only those with this label; the value may be a pattern such as 'prod*'. May be given "
    "many times: all must fit.",
)
@json_option
def domains(host: str, labels: Sequence[str], as_json: bool) -> None:
    """List the domains of all hypervisors; those of one that is gone are unreachable."""
    wanted = dict(map(label_wanted, labels))
    client = connect()
    found = [d for d in client.domains(host) if labels_fit(d.labels, wanted)]
    if as_json:
        output.document(found)
        return
    output.table(
        ("DOMAIN", "HOST", "STATE", ">DISKS", "LABELS", "UUID"),
        (
            (d.name, d.host, d.state, str(d.disks), output.labels(d.labels) or "-", d.uuid)
            for d in found
        ),
        empty="No domains.",
    )
    shown = {d.host for d in found if d.state in (UNKNOWN, UNREACHABLE)}
    for one in client.hosts() if not host else ():
        if one.host in shown or one.trouble:
            why = one.trouble if one.alive else f"gone since {output.instant(one.seen)}."
            output.note(f"{one.host}: {why} Its domains are those that were known last.")


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


def _room(one: RepositoryInfo) -> str:
    """``main (1.2 TiB free)``."""
    if one.why:
        return f"{one.name} (unusable)"
    return one.name if one.free < 0 else f"{one.name} ({output.size(one.free)} free)"


def label_wanted(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not (name and equals and pattern):
        raise click.BadParameter(f"{text!r}: write NAME=VALUE, such as tier=prod.")
    return name, pattern


def labels_fit(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(fnmatchcase(labels.get(name, ""), pattern) for name, pattern in wanted.items())


def _owners(bitmaps: Sequence[str]) -> str:
    """Ours in one word: `virtvault bitmaps list` tells each."""
    others = [name for name in bitmaps if not name.startswith("virtvault.")]
    ours = ["virtvault"] if len(others) < len(bitmaps) else []
    return ", ".join([*ours, *others]) or "-"


def _incrementals(persistent: bool) -> str:
    return "yes" if persistent else "yes; a full after each power cycle"
