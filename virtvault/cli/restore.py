"""``virtvault restore``."""

from __future__ import annotations

from pathlib import Path

import click

from virtvault.cli.follow import finish
from virtvault.cli.options import (
    connect,
    detach_option,
    disk_option,
    json_option,
    speed_option,
)
from virtvault.models import RESTORE_FORMATS, RESTORE_MODES

__all__ = ["restore"]

MODES = """flatten: images that need no other file. chain: the images of its chain, backed by each
other. instant: boots at once, and pulls the data in behind the running guest (with --as)."""


def _devices(_context: object, _parameter: object, given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        target, equals, path = text.partition("=")
        if not (target and equals and path):
            raise click.BadParameter(f"{text!r}: write TARGET=PATH, such as vda=/dev/vg0/web.")
        if target in found:
            raise click.BadParameter(f"{target} is given twice.")
        found[target] = path
    return found


@click.command()
@click.argument("point")
@click.option(
    "--to",
    metavar="DIR",
    help="A directory on the restoring host, below one of its restore_roots. With --as, the "
    "default is one of that name in the first.",
)
@click.option("--as", "name", default="", metavar="NAME", help="Also define a new domain on them.")
@click.option("--start", is_flag=True, help="Start it, too.")
@click.option(
    "--in-place",
    is_flag=True,
    help="Replace the disks of the point's own domain, which is shut off. Needs --yes.",
)
@click.option("--yes", is_flag=True, help="What the domain's disks hold now is given up.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    callback=_devices,
    metavar="TARGET=PATH",
    help="Write this disk onto a block device, or into a new RBD image (rbd:POOL/IMAGE), that the "
    "host's restore_devices allow.",
)
@click.option("--host", default="", help="The hypervisor that restores. Default: looked up.")
@click.option("--repository", default="", help="Where the point is. Default: looked up.")
@click.option(
    "--mode", type=click.Choice(RESTORE_MODES), default="flatten", show_default=True, help=MODES
)
@click.option("--format", type=click.Choice(RESTORE_FORMATS), default="qcow2", show_default=True)
@click.option(
    "--force",
    is_flag=True,
    help="Restore a point that a verify found bad; overwrite a device that is not empty.",
)
@disk_option
@speed_option
@detach_option
@json_option
def restore(
    point: str,
    to: str | None,
    name: str,
    start: bool,
    in_place: bool,
    yes: bool,
    devices: dict[str, str],
    host: str,
    repository: str,
    mode: str,
    format: str,
    force: bool,
    disks: tuple[str, ...],
    speed: int,
    detach: bool,
    as_json: bool,
) -> None:
    """Bring the disks of POINT back: as files, on devices, as a new domain, or in place."""
    if to == "":
        # `--to "$UNSET"` would otherwise be the current directory.
        raise click.BadParameter("name a directory.", param_hint="--to")
    if in_place and not yes:
        raise click.UsageError(
            "--in-place gives up what the disks of the point's domain hold now: repeat with --yes."
        )
    handle = connect().restore(
        point,
        # The worker runs elsewhere: only an absolute path means the same there.
        to=str(Path(to).absolute()) if to else "",
        host=host,
        repository=repository,
        mode=mode,
        format=format,
        disks=disks,
        speed=speed,
        name=name,
        start=start,
        in_place=in_place,
        devices=devices,
        force=force,
    )
    finish(handle, f"restore of {point}", detach=detach, as_json=as_json)
