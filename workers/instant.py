"""The instant of a point: freeze, stop, swap, continue, thaw, as short as can be.

Several disks share one instant because the guest's CPUs stand still while the devices are
swapped. A guard process outlives this one: whatever happens to the worker in between, the guest
runs and is thawed again within seconds.
"""

from __future__ import annotations

import contextlib
import logging
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from virtvault.errors import GuestAgentFailed, MonitorError, VirtvaultError, WorkFailed
from virtvault.settings import Settings
from workers.engine import now
from workers.hypervisor import LibvirtMonitor

__all__ = ["Instant", "take"]

log = logging.getLogger(__name__)


# Guards that still undo something; kept so that they are reaped.
_at_work: list[subprocess.Popen[str]] = []


@dataclass(frozen=True)
class Instant:
    """How it went: ``at`` in UTC, the rest in milliseconds."""

    at: str
    frozen: bool
    paused_ms: float
    frozen_ms: float
    notes: tuple[str, ...] = ()


def take(
    monitor: LibvirtMonitor,
    settings: Settings,
    *,
    freeze: str,
    stop: bool,
    swap: Callable[[], None],
) -> Instant:
    """Run ``swap`` at one instant of the guest.

    :param freeze: ``auto``, ``always`` or ``never``; a guest that does not run cannot freeze.
    :param stop: whether the guest's CPUs must stand during ``swap``.
    :raises GuestAgentFailed: ``always`` and the agent did not freeze.
    :raises WorkFailed: the guest ran during a swap that it must not run in.
    """
    running = monitor.execute("query-status")["running"]
    notes: list[str] = []
    agent = running and freeze != "never" and _agent_connected(monitor, notes)
    if freeze == "always" and not agent:
        raise GuestAgentFailed(
            f"Domain {monitor.name}: freeze was demanded and the guest agent does not answer.",
            "Start qemu-guest-agent in the guest, or use --freeze auto.",
        )
    if not agent and not (stop and running):
        at = _standing(monitor, swap) if stop else _moving(swap)
        return Instant(at, False, 0.0, 0.0, tuple(notes))
    with _guard(monitor, settings) as began:
        return _take(monitor, settings, agent, freeze, stop, swap, notes, began)


def _take(
    monitor: LibvirtMonitor,
    settings: Settings,
    agent: bool,
    freeze: str,
    stop: bool,
    swap: Callable[[], None],
    notes: list[str],
    began: Callable[[str], None],
) -> Instant:
    frozen, paused_ms, frozen_from = False, 0.0, 0.0
    if agent:
        began("freeze")
        try:
            monitor.agent("guest-fsfreeze-freeze", settings.freeze_timeout)
            frozen, frozen_from = True, time.monotonic()
        except MonitorError as error:
            # It may have frozen all the same and only answered late: thaw whatever it says.
            _thaw(monitor, settings, notes, began)
            if freeze == "always":
                raise GuestAgentFailed(
                    f"Domain {monitor.name}: the guest agent did not freeze: {error.message}",
                    "See the guest agent's log, or use --freeze auto.",
                ) from error
            notes.append(f"the guest agent did not freeze: {error.message}")
    try:
        if stop:
            began("stop")
            from_ = time.monotonic()
            try:
                monitor.execute("stop")
                at = _standing(monitor, swap)
            finally:
                monitor.execute("cont")
                began("running")
                paused_ms = _ms(from_)
        else:
            at = _moving(swap)
    finally:
        if frozen and _thaw(monitor, settings, notes, began) == 0:
            frozen = False
            notes.append("the file systems had been thawed before the instant was over")
    return Instant(at, frozen, paused_ms, _ms(frozen_from) if frozen else 0.0, tuple(notes))


def _moving(swap: Callable[[], None]) -> str:
    """One disk: its swap is the instant, whether the guest runs or not."""
    at = now()
    swap()
    return at


def _standing(monitor: LibvirtMonitor, swap: Callable[[], None]) -> str:
    """Several disks: the instant is all the time that the guest stands.

    :raises WorkFailed: it ran before the last was swapped.
    """
    at = now()
    from_ = time.monotonic()
    swap()
    if monitor.execute("query-status")["running"]:
        raise WorkFailed(
            f"Domain {monitor.name}: the guest ran on while its disks were swapped, so they have "
            f"no common instant (the swap took {_ms(from_):g} ms).",
            "The pause guard or somebody else resumed it. Back up again; raise guard_seconds "
            "where this host is slow.",
        )
    return at


def _agent_connected(monitor: LibvirtMonitor, notes: list[str]) -> bool:
    """Whether an agent answers now; a short question, since a dead one would cost the time-out."""
    if "org.qemu.guest_agent.0" not in monitor.xml():
        return False
    try:
        monitor.agent("guest-ping", 2)
    except MonitorError as error:
        notes.append(f"the guest agent does not answer: {error.message}")
        return False
    return True


def _thaw(
    monitor: LibvirtMonitor, settings: Settings, notes: list[str], began: Callable[[str], None]
) -> int | None:
    """Thaw; gives how many file systems were frozen until now, None where that is not known.

    Where it fails the guard, which was not told "thawed", goes on trying.
    """
    try:
        count: int = monitor.agent("guest-fsfreeze-thaw", settings.freeze_timeout)
    except VirtvaultError as error:
        log.error("domain %s: thaw failed, the guard tries on: %s", monitor.name, error)
        notes.append(f"thaw failed and was left to the guard: {error.message}")
        return None
    began("thawed")
    return count


@contextmanager
def _guard(monitor: LibvirtMonitor, settings: Settings) -> Iterator[Callable[[str], None]]:
    """Arm the guard; yields a function that tells it what begins (and what is over).

    When we let go of it, dead or alive, it undoes what it was not told to be over.

    :raises WorkFailed: it does not start: then nothing may be paused.
    """
    _at_work[:] = [process for process in _at_work if process.poll() is None]
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-m",
            "workers.guard",
            settings.libvirt_uri,
            monitor.uuid,
            str(settings.guard_seconds),
            str(settings.freeze_timeout),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin and process.stdout
    stdin, stdout = process.stdin, process.stdout

    def began(what: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(what, file=stdin, flush=True)

    try:
        ready, _, _ = select.select([stdout], [], [], settings.qmp_timeout)
        if not ready or stdout.readline() != "armed\n":
            process.kill()
            raise WorkFailed(
                f"Domain {monitor.name}: the pause guard did not start; the guest was not paused.",
                "See the worker's log; start libvirtd where it is down.",
            )
        yield began
    finally:
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        stdout.close()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            _at_work.append(process)


def _ms(from_: float) -> float:
    return round((time.monotonic() - from_) * 1000, 1)
