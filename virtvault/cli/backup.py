"""``virtvault backup``."""

from __future__ import annotations

import click

from virtvault.cli.follow import finish
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
    help="auto: incremental where that is safe, else full.",
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
@detach_option
@json_option
def backup(
    domain: str,
    repository: str,
    sync: str,
    disks: tuple[str, ...],
    speed: int,
    freeze: str,
    detach: bool,
    as_json: bool,
) -> None:
    """Back up the disks of the running DOMAIN (a name, a uuid, or host/name)."""
    handle = connect().backup(
        domain,
        repository=repository,
        sync=sync,
        disks=disks,
        speed=speed,
        freeze=freeze,
    )
    finish(handle, f"backup of {domain}", detach=detach, as_json=as_json)
