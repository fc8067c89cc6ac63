"""``virtvault export``."""

from __future__ import annotations

import re

import click

from virtvault.cli.follow import finish, open_export
from virtvault.cli.options import connect, detach_option, disk_option, json_option

__all__ = ["export"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """Seconds from ``90s``, ``30m``, ``2h``, ``1d`` or ``1h30m``.

    :raises click.BadParameter: it is none of these, or no time at all.
    """
    parts = re.findall(r"(\d+)([smhd])", text)
    found = sum(int(count) * UNITS[unit] for count, unit in parts)
    if "".join(count + unit for count, unit in parts) != text or not found:
        raise click.BadParameter(f"{text!r} is not a time; write 90s, 30m, 2h or 1d.")
    return found


@click.command()
@click.argument("point")
@disk_option
@click.option(
    "--timeout", type=seconds, default=None, metavar="TIME", help="End it by itself: 30m, 2h, 1d."
)
@click.option("--host", default="", help="The hypervisor that serves it. Default: looked up.")
@click.option("--repository", default="", help="Where the point is. Default: looked up.")
@click.option("--force", is_flag=True, help="Serve a point that a verify found bad.")
@detach_option
@json_option
def export(
    point: str,
    disks: tuple[str, ...],
    timeout: int | None,
    host: str,
    repository: str,
    force: bool,
    detach: bool,
    as_json: bool,
) -> None:
    """Serve the disks of POINT read-only over NBD, until cancelled.

    The URLs are for programs on the serving host, such as qemu-img, nbdinfo or guestmount. With
    --detach they are printed as soon as it is open, and it stays open.
    """
    handle = connect().serve(
        point, host=host, repository=repository, disks=disks, seconds=timeout or 0, force=force
    )
    if detach:
        open_export(handle, f"export of {point}", as_json=as_json)
        return
    finish(handle, f"export of {point}", detach=False, as_json=as_json)
