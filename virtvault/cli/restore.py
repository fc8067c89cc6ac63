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
from virtvault.models import RESTORE_FORMATS

__all__ = ["restore"]


@click.command()
@click.argument("point")
@click.option("--to", required=True, metavar="DIR", help="A directory on the restoring host.")
@click.option("--host", default="", help="The hypervisor that restores. Default: looked up.")
@click.option("--repository", default="", help="Where the point is. Default: looked up.")
@click.option(
    "--mode",
    type=click.Choice(("flatten",)),
    default="flatten",
    show_default=True,
    help="flatten: images that need no other file.",
)
@click.option("--format", type=click.Choice(RESTORE_FORMATS), default="qcow2", show_default=True)
@disk_option
@speed_option
@detach_option
@json_option
def restore(
    point: str,
    to: str,
    host: str,
    repository: str,
    mode: str,
    format: str,
    disks: tuple[str, ...],
    speed: int,
    detach: bool,
    as_json: bool,
) -> None:
    """Write the disks of POINT as stand-alone images into a directory."""
    if not to:
        # `--to "$UNSET"` would otherwise be the current directory.
        raise click.BadParameter("name a directory.", param_hint="--to")
    handle = connect().restore(
        point,
        # The worker runs elsewhere: only an absolute path means the same there.
        to=str(Path(to).absolute()),
        host=host,
        repository=repository,
        mode=mode,
        format=format,
        disks=disks,
        speed=speed,
    )
    finish(handle, f"restore of {point}", detach=detach, as_json=as_json)
