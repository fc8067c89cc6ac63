"""The main job as a user does it, through the command line alone: the demo and its test run this.

A guest writes to two disks. It is suspended for a moment around each point's instant, so that
what its disks hold then can be copied and compared; it writes on while the blocks are copied.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import Guest, assert_same

__all__ = ["CommandFailed", "Flow", "PointTaken"]

VIRTVAULT = Path(sys.executable).with_name("virtvault")


class CommandFailed(Exception):
    """A command ended with a code other than 0; the message has what it printed."""


@dataclass
class PointTaken:
    """One point: its result document, references, and how it was restored."""

    result: dict[str, Any]
    references: dict[str, Path]
    seconds: float
    suspended_ms: float
    ticks_meanwhile: int
    restored: dict[str, Any] = field(default_factory=dict)
    restore_seconds: float = 0.0
    equal: bool = False


class Flow:
    """Runs `virtvault` against one embedded installation below `state_dir`."""

    def __init__(self, state_dir: Path, flower_port: int) -> None:
        self.state_dir = state_dir
        self.flower_port = flower_port
        self.points: list[PointTaken] = []

    @contextmanager
    def up(self) -> Iterator[None]:
        """Everything runs; taken down at the end."""
        port = str(self.flower_port)
        self.run("up", "--state-dir", str(self.state_dir), "--flower-port", port, "--detach")
        try:
            yield
        finally:
            self.run("down", "--state-dir", str(self.state_dir))

    def command(self, *arguments: str) -> list[str]:
        return [str(VIRTVAULT), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """As a user would export it after `up`."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("VIRTVAULT_")}
        return {**clean, "VIRTVAULT_CONFIG": str(self.state_dir / "virtvault.toml")}

    def run(self, *arguments: str) -> str:
        """Run one command and give its standard output.

        :raises CommandFailed: its exit code is not 0.
        """
        environment = self.environment
        if arguments[0] in ("up", "down"):
            del environment["VIRTVAULT_CONFIG"]
        done = subprocess.run(
            self.command(*arguments), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandFailed(
                f"virtvault {' '.join(arguments)}: exit {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """Run one command with --json and give its document."""
        return json.loads(self.run(*arguments, "--json"))

    def take_point(
        self, guest: Guest, directory: Path, *options: str, tell: Callable[[str], None]
    ) -> PointTaken:
        """Suspend, copy the references, start the backup, resume at its instant, wait for it."""
        number = len(self.points)
        began = time.monotonic()
        guest.suspend()
        try:
            references = {
                target: guest.reference(target, directory / f"reference-{number}-{target}")
                for target in guest.disks
            }
            started = time.monotonic()
            with subprocess.Popen(
                self.command("backup", guest.name, "--json", *options),
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    _wait_for_jobs(guest, process)
                finally:
                    guest.resume()
                suspended_ms = (time.monotonic() - began) * 1000
                ticks = guest.ticks()
                out, errors = process.communicate(timeout=300)
        finally:
            if guest.is_paused():
                guest.resume()
        if process.returncode:
            raise CommandFailed(f"backup: exit {process.returncode}\n{out}{errors}")
        point = PointTaken(
            result=json.loads(out),
            references=references,
            seconds=time.monotonic() - started,
            suspended_ms=suspended_ms,
            ticks_meanwhile=guest.ticks() - ticks,
        )
        self.points.append(point)
        tell(f"point {point.result['point']} in {point.seconds:.1f} s")
        return point

    def restore_and_compare(self, point: PointTaken, guest: Guest, to: Path) -> None:
        """Restore a point by the command line and compare every disk with its reference."""
        began = time.monotonic()
        point.restored = self.json("restore", point.result["point"], "--to", str(to))
        point.restore_seconds = time.monotonic() - began
        for disk in point.restored["disks"]:
            target = disk["target"]
            reference = point.references[target]
            assert_same(Path(disk["path"]), disk["format"], reference, guest.disks[target].format)
        point.equal = True


def _wait_for_jobs(guest: Guest, process: subprocess.Popen[str]) -> None:
    """Return when the instant has been taken: the point's jobs run, or it is done already."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if any(j["device"].startswith("virtvault-") for j in guest.qmp("query-block-jobs")):
            return
        time.sleep(0.02)
