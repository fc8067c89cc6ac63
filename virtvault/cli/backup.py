"""``virtvault backup``."""

from __future__ import annotations

import click

from virtvault.cli.follow import finish, open_export
from virtvault.cli.options import (
    connect,
    detach_option,
    disk_option,
    json_option,
    speed_option,
)
from virtvault.models import FREEZE_MODES, SYNC_MODES

__all__ = ["backup"]


@click.command()
@click.argument("domain")
@click.option("--repository", default="", help="Where to store the point. Default: the worker's.")
@click.option(
    "--sync",
    type=click.Choice(SYNC_MODES),
    default="auto",
    show_default=True,
    help="auto and incremental: what changed, where that is certain, else full. top: the active "
    "layer alone. none: serve the disks as they are now, until cancelled.",
)
@disk_option
@speed_option
@click.option(
    "--freeze",
    type=click.Choice(FREEZE_MODES),
    default="auto",
    show_default=True,
    help="Freeze the guest's file systems: where its agent answers, or fail, or not at all.",
)
@click.option(
    "--bitmap",
    default="",
    metavar="NAME",
    help="A dirty bitmap of yours: copy what it marks, and clear it once the point is durable.",
)
@click.option(
    "--start-paused",
    is_flag=True,
    help="Start a domain that is shut off, capture it before its first write, let it run.",
)
@detach_option
@json_option
def backup(
    domain: str,
    repository: str,
    sync: str,
    disks: tuple[str, ...],
    speed: int,
    freeze: str,
    bitmap: str,
    start_paused: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Back up the disks of DOMAIN (a name, a uuid, or host/name), running or shut off."""
    handle = connect().backup(
        domain,
        repository=repository,
        sync=sync,
        disks=disks,
        speed=speed,
        freeze=freeze,
        bitmap=bitmap,
        start_paused=start_paused,
    )
    if sync == "none" and detach:
        open_export(handle, f"export of {domain}", as_json=as_json)
        return
    finish(handle, f"backup of {domain}", detach=detach, as_json=as_json)
