"""Options that several commands share, and the client they talk to."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from virtvault.client import Client

__all__ = [
    "Invocation",
    "connect",
    "detach_option",
    "disk_option",
    "json_option",
    "speed_argument",
    "speed_option",
]

F = TypeVar("F", bound=Callable[..., Any])

# QEMU takes a job's speed as a signed 64-bit number.
MAX_SPEED = 2**63 - 1
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Invocation:
    """The global options of this call."""

    config: Path | None = None
    debug: bool = False


def connect() -> Client:
    """A client with the settings of this call.

    :raises InvalidSettings: the settings file or a variable is wrong.
    """
    # Imported here: Celery takes longer to load than `virtvault --help` should run.
    from virtvault import client, settings

    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    return client.Client(settings.load(invocation.config))


def speed(text: str) -> int:
    """Bytes per second from ``50M``, ``1G``, ``512K``, ``1.5G`` or a plain number; 1024-based.

    :raises click.BadParameter: it is none of these.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?(?:/s)?", text, re.I)
    if match is None:
        raise click.BadParameter(
            f"{text!r} is not a speed; write 50M, 1G or 512K (bytes per second)."
        )
    number = float(match[1])
    counted = int(number * UNITS[match[2].upper()]) if number < MAX_SPEED else MAX_SPEED + 1
    if counted > MAX_SPEED:
        raise click.BadParameter(f"{text!r} is more than QEMU can count; 0 is no limit.")
    # 0 is no limit at all: the opposite of what a tiny number asks for.
    if number and not counted:
        raise click.BadParameter(f"{text!r} is less than one byte per second.")
    return counted


def speed_option(command: F) -> F:
    """``--speed``: the argument ``speed``, in bytes per second."""
    text = "Limit per disk in bytes per second, such as 50M. Default: none."
    option = click.option("--speed", type=speed, default="0", metavar="RATE", help=text)
    return option(command)


def speed_argument(command: F) -> F:
    """``RATE``: the argument ``rate``, in bytes per second."""
    return click.argument("rate", type=speed, metavar="RATE")(command)


def json_option(command: F) -> F:
    """``--json``: the argument ``as_json``."""
    text = "One JSON document on stdout; everything else goes to stderr."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def detach_option(command: F) -> F:
    """``--detach``: do not wait."""
    text = "Return at once; look again with `virtvault task ID`."
    return click.option("--detach", is_flag=True, help=text)(command)


def disk_option(command: F) -> F:
    """``--disk``, many times: the argument ``disks``."""
    text = "Only this disk, by its target name such as vda; may be given many times."
    return click.option("--disk", "disks", multiple=True, metavar="TARGET", help=text)(command)
