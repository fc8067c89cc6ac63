"""``python -P -m tasks.embedded up|down``."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click

from tasks.embedded import files, prerequisites, readiness
from tasks.embedded.files import Choices
from tasks.embedded.supervision import Supervision, hold_start
from virtvault import settings
from virtvault.cli.check import show_lines
from virtvault.cli.output import show_error
from virtvault.errors import VirtvaultError, WorkFailed
from virtvault.models import CheckLine
from virtvault.settings import Settings

__all__ = ["main"]

# Seconds for one answer of supervisord: its XML-RPC client has no limit of its own.
RPC_TIMEOUT = 10.0


def main() -> None:
    """Run ``up`` or ``down`` and exit with its code."""
    arguments = _parse(sys.argv[1:])
    socket.setdefaulttimeout(RPC_TIMEOUT)
    try:
        arguments.run(arguments)
    except VirtvaultError as error:
        show_error(error.message, error.mend)
        sys.exit(error.exit_code)
    except OSError as error:
        show_error(f"{error.filename or 'this host'}: {error.strerror or error}.")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def up(arguments: argparse.Namespace) -> None:
    """Start everything, wait until it answers, and say what runs.

    :raises VirtvaultError: something is missing, or does not come up; nothing is left running.
    """
    choices = Choices(
        state_dir=_state_dir(arguments.state_dir),
        libvirt_uri=arguments.libvirt_uri,
        repository=arguments.repository,
        flower_port=arguments.flower_port,
    )
    _end_on_signals()
    prerequisites.require()
    given = files.prepare(choices)
    supervision = Supervision(given)
    with hold_start(given):
        if supervision.answers():
            lines = readiness.wait(given, supervision)
            click.echo(f"virtvault already runs ({given.state_dir}).")
            _summary(given, choices.config, lines)
            return
        readiness.require_free(given, supervision)
        click.echo("starting …", err=True)
        began = datetime.now(UTC)
        supervision.start(files.write_supervisord(given, choices.config))
        try:
            lines = readiness.wait(given, supervision, began)
        except BaseException:
            click.echo("stopping …", err=True)
            _take_down(supervision)
            raise
    _summary(given, choices.config, lines)
    if not arguments.detach:
        _stay(supervision)


def down(arguments: argparse.Namespace) -> None:
    """Stop everything and wait until it has ended."""
    state_dir = _state_dir(arguments.state_dir)
    config = state_dir / files.CONFIG_NAME
    supervision = Supervision(settings.load(config)) if config.exists() else None
    if supervision is None or not supervision.answers():
        click.echo(f"Nothing runs ({state_dir}).")
        return
    supervision.stop()
    click.echo("Stopped. Running backups go on in QEMU; the next `virtvault up` takes them up.")


def _stay(supervision: Supervision) -> None:
    """Stay in the foreground until told to end, or until somebody else's `down`."""
    click.echo("Ctrl-C stops everything.")
    try:
        if supervision.wait() != 0:
            raise WorkFailed(
                "supervisord was killed, and all programs with it.",
                "Running backups go on in QEMU; `virtvault up` takes them up.",
            )
    except KeyboardInterrupt:
        click.echo("\nstopping …", err=True)
        _take_down(supervision)
    click.echo("Stopped. Running backups go on in QEMU; the next `virtvault up` takes them up.")


def _take_down(supervision: Supervision) -> None:
    # A second Ctrl-C would leave half of it behind; how long this takes is limited.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    supervision.stop()


def _end_on_signals() -> None:
    """SIGTERM, and the SIGHUP of a terminal that closes, end it as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored, and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _summary(given: Settings, config: Path, lines: list[CheckLine]) -> None:
    repositories = ", ".join(f"{r.name} ({r.path})" for r in given.repositories.values())
    click.echo(f"virtvault runs on {given.host}: Redis, worker, control, central, beat, Flower.")
    click.echo(f"  state       {given.state_dir}, logs in {files.log_dir(given)}")
    click.echo(f"  libvirt     {given.libvirt_uri}")
    click.echo(f"  repository  {repositories or 'none'}")
    click.echo(f"  Flower      http://{given.flower_address}:{given.flower_port}")
    wrong = [line for line in lines if line.verdict != "ok"]
    if wrong:
        click.echo("Not all is well yet (`virtvault check` shows it again):")
        show_lines(wrong)
    click.echo("Next:")
    found = settings.find_file()
    if found is None or found.resolve() != config:
        click.echo(f"  export VIRTVAULT_CONFIG={config}")
    click.echo("  virtvault domains")
    click.echo("  virtvault backup DOMAIN")


def _state_dir(given: str | None) -> Path:
    """As given; else where VIRTVAULT_CONFIG names a file that an earlier `up` wrote; else ours."""
    if given:
        return Path(given).resolve()
    named = os.environ.get("VIRTVAULT_CONFIG")
    if named and Path(named).with_name(files.SUPERVISORD_NAME).exists():
        return Path(named).resolve().parent
    return Path(settings.DEFAULT_STATE_DIR)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tasks.embedded", allow_abbrev=False)
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=run.__doc__, allow_abbrev=False)
        made.add_argument("--state-dir")
        made.set_defaults(run=run)
        return made

    starting = command("up", up)
    starting.add_argument("--libvirt-uri")
    starting.add_argument("--repository")
    starting.add_argument("--flower-port", type=int)
    starting.add_argument("--detach", action="store_true")
    command("down", down)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
