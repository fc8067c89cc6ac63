"""``virtvault bitmaps list|add|clear|remove``: QEMU's dirty bitmaps, by hand."""

from __future__ import annotations

import re

import click

from virtvault.cli import output
from virtvault.cli.options import UNITS, connect, disk_option, json_option
from virtvault.models import BitmapChanges, BitmapInfo

__all__ = ["bitmaps"]


def _granularity(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)(?:i?B)?", text, re.I)
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{text!r} is not a size; write 64K, 1M or 4096 (bytes).")
    return int(match[1]) * UNITS[match[2].upper()]


@click.group()
def bitmaps() -> None:
    """List, add, clear and remove the dirty bitmaps of a domain's disks.

    They mark what the guest has written since they were added or cleared. DOMAIN is a name, a
    uuid or host/name, and may be shut off. virtvault's and libvirt's own are shown and protected.
    """


@bitmaps.command("list")
@click.argument("domain")
@disk_option
@json_option
def list_(domain: str, disks: tuple[str, ...], as_json: bool) -> None:
    """List the bitmaps of DOMAIN and whose they are.

    A bitmap on an image further down a disk's backing chain has that image's name.
    """
    found = connect().bitmaps(domain, disks=disks)
    if as_json:
        output.document(found)
        return
    output.table(
        ("DISK", "BITMAP", "OWNER", ">GRANULARITY", ">DIRTY", "PERSISTENT", "STATE", "IMAGE"),
        (
            (
                bitmap.target,
                bitmap.name,
                f"{bitmap.owner}: {bitmap.purpose}" if bitmap.purpose else bitmap.owner,
                output.size(bitmap.granularity),
                "unknown" if bitmap.dirty is None else output.size(bitmap.dirty),
                "yes" if bitmap.persistent else "no",
                bitmap.state,
                "active" if bitmap.active else bitmap.image,
            )
            for bitmap in found
        ),
        empty="No bitmaps.",
    )


@bitmaps.command()
@click.argument("domain")
@click.argument("name")
@disk_option
@click.option(
    "--granularity",
    type=_granularity,
    default=None,
    metavar="SIZE",
    help="Bytes per bit, such as 64K: a power of two from 512 to 2G. Default: QEMU's.",
)
@click.option(
    "--persistent/--no-persistent",
    default=None,
    help="Store it in the image at shutdown. Default: where the image can (qcow2).",
)
@json_option
def add(
    domain: str,
    name: str,
    disks: tuple[str, ...],
    granularity: int | None,
    persistent: bool | None,
    as_json: bool,
) -> None:
    """Add a bitmap to the disks of DOMAIN.

    To all that can have one or to those of --disk; where one refuses, to none.
    """
    done = connect().add_bitmap(
        domain, name, disks=disks, granularity=granularity or 0, persistent=persistent
    )
    _show(done, as_json)


@bitmaps.command()
@click.argument("domain")
@click.argument("name")
@disk_option
@json_option
def clear(domain: str, name: str, disks: tuple[str, ...], as_json: bool) -> None:
    """Clear a bitmap: it begins anew.

    On all disks of DOMAIN that have it, or on those of --disk.
    """
    _show(connect().clear_bitmap(domain, name, disks=disks), as_json)


@bitmaps.command()
@click.argument("domain")
@click.argument("name")
@disk_option
@click.option(
    "--yes",
    is_flag=True,
    help="Virtvault's own too. The next backup of such a disk is then a full.",
)
@json_option
def remove(domain: str, name: str, disks: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove bitmaps, by name or pattern.

    From all disks of DOMAIN that have them, or from those of --disk.

    libvirt reverts to an internal snapshot only where a disk has no bitmaps at all: `virtvault
    bitmaps remove DOMAIN 'virtvault.*' --yes` drops virtvault's.
    """
    _show(connect().remove_bitmap(domain, name, disks=disks, include_ours=yes), as_json)


def _show(done: BitmapChanges, as_json: bool) -> None:
    if as_json:
        output.document(done)
        return
    for bitmap in done.bitmaps:
        click.echo(f"{bitmap.target}: {done.action} {bitmap.name}{_consequence(done, bitmap)}")
    for target, why in done.skipped.items():
        click.echo(f"skipped {target}: {why}")


def _consequence(done: BitmapChanges, bitmap: BitmapInfo) -> str:
    if done.action == "added":
        where = (
            "persistent (stored in the image at shutdown)"
            if bitmap.persistent
            else "not persistent (in QEMU's memory, gone when the domain is shut off)"
        )
        return f", {output.size(bitmap.granularity)} granularity, {where}"
    if done.action == "removed" and bitmap.owner == "virtvault":
        return f" ({bitmap.purpose}): the next backup there is a full"
    return ""
