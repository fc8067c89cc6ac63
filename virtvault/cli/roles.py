"""``virtvault up``, ``down`` and the roles: each becomes another process, in the foreground.

The roles live in ``tasks``, which this package does not import: a service that only enqueues
backups has neither libvirt nor a database.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from virtvault.cli.options import Invocation

__all__ = ["up", "down", "worker", "control", "central", "beat", "flower"]


def _become(module: str, *arguments: str) -> NoReturn:
    """Replace this process, so that signals and exit codes are the role's own."""
    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    environ = dict(os.environ)
    if invocation.config is not None:
        environ["VIRTVAULT_CONFIG"] = str(invocation.config.absolute())
    # -P: a `tasks.py` in the current directory must not shadow ours.
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, environ)  # noqa: S606 - no shell is what is wanted


@click.command()
@click.option(
    "--state-dir",
    metavar="DIR",
    help="Where everything is kept. Default: /var/lib/virtvault, or that of VIRTVAULT_CONFIG "
    "where `up` wrote it.",
)
@click.option("--libvirt-uri", metavar="URI", help="Default: qemu:///system.")
@click.option(
    "--repository", metavar="DIR", help="Where points are stored. Default: in the state directory."
)
@click.option(
    "--flower-port", type=click.IntRange(1, 65535), metavar="N", help="Default: 5555, on loopback."
)
@click.option("--detach", is_flag=True, help="Return when everything answers.")
def up(
    state_dir: str | None,
    libvirt_uri: str | None,
    repository: str | None,
    flower_port: int | None,
    detach: bool,
) -> None:
    """Run everything on this one hypervisor: a private Redis, all roles, Flower.

    The settings are written to virtvault.toml in the state directory at the first start, and
    kept as you edit them from then on.
    """
    given = {
        "--state-dir": state_dir,
        "--libvirt-uri": libvirt_uri,
        "--repository": repository,
        "--flower-port": flower_port,
    }
    # One word each: a value may begin with a dash.
    arguments = [f"{name}={value}" for name, value in given.items() if value is not None]
    _become("tasks.embedded", "up", *arguments, *(["--detach"] if detach else []))


@click.command()
@click.option("--state-dir", metavar="DIR", help="As given to `up`.")
def down(state_dir: str | None) -> None:
    """Stop what `up` started. Running backups go on in QEMU until the next `up`."""
    given = [] if state_dir is None else [f"--state-dir={state_dir}"]
    _become("tasks.embedded", "down", *given)


@click.command()
def worker() -> None:
    """Run this hypervisor's worker: backups and restores."""
    _become("tasks.role", "worker")


@click.command()
def control() -> None:
    """Run this hypervisor's control worker: short questions, pause, resume, cancel."""
    _become("tasks.role", "control")


@click.command()
def central() -> None:
    """Run the central worker: the catalog."""
    _become("tasks.role", "central")


@click.command()
def beat() -> None:
    """Run the scheduler."""
    _become("tasks.role", "beat")


@click.command()
def flower() -> None:
    """Run Flower, which shows the tasks in a browser."""
    _become("tasks.role", "flower")
