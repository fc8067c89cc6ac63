"""When everything has come up: each program runs, Redis and both of the host's queues answer."""

from __future__ import annotations

import socket
import time
from datetime import datetime
from pathlib import Path

import redis

from tasks.embedded.files import REDIS, ROLES, log_dir
from tasks.embedded.supervision import Supervision
from virtvault import runs
from virtvault.client import Client
from virtvault.errors import InvalidSettings, NotReachable, WorkFailed
from virtvault.models import CheckLine
from virtvault.settings import Settings

__all__ = ["require_free", "wait"]

# Seconds until all must answer: a few are usual, tens on a host that is busy or just booted.
START_SECONDS = 60.0
# Seconds for the programs of a supervisord that was killed to end.
END_SECONDS = 15.0
# Seconds between two looks.
PAUSE = 0.2
# Lines of a program's log that an error shows.
TAIL = 15


def require_free(given: Settings, supervision: Supervision) -> None:
    """Make sure that nobody else is where Redis and Flower are to be.

    :raises WorkFailed: a Redis that supervisord does not run answers on our socket.
    :raises InvalidSettings: Flower's port is taken.
    """
    until = time.monotonic() + (END_SECONDS if supervision.was_killed() else 0)
    while _redis_answers(given) or _flower_answers(given):
        if time.monotonic() > until:
            break
        time.sleep(PAUSE)
    if _redis_answers(given):
        raise WorkFailed(
            f"A Redis that is not ours already answers on {given.redis_url}.",
            "Stop it, then run this again.",
        )
    if _flower_answers(given):
        raise InvalidSettings(
            f"Port {given.flower_port} of {given.flower_address} is taken.",
            "Choose another: --flower-port at the first start, later flower_port in "
            "virtvault.toml.",
        )


def wait(
    given: Settings, supervision: Supervision, since: datetime | None = None
) -> list[CheckLine]:
    """Wait until all answers; gives what `check` says of this host.

    A sign of life from before ``since`` is an earlier worker's: Redis remembers it for a while.

    :raises WorkFailed: a program does not come up; the message has the end of its log.
    """
    client = Client(given)
    until = time.monotonic() + START_SECONDS
    while True:
        awaited, lines = _look(given, supervision, client, since)
        if not awaited:
            return lines
        if time.monotonic() > until:
            raise WorkFailed(
                f"{awaited} has not come up within {START_SECONDS:.0f} s. The end of its log:\n"
                + _tail(log_dir(given) / f"{awaited}.log"),
                f"All logs are in {log_dir(given)}.",
            )
        time.sleep(PAUSE)


def _look(
    given: Settings, supervision: Supervision, client: Client, since: datetime | None
) -> tuple[str, list[CheckLine]]:
    """The program that is still awaited, empty for none, and then the host's check."""
    states = supervision.states()
    for name in (REDIS, *ROLES):
        if states.get(name) != "RUNNING":
            return name, []
    if not _redis_answers(given):
        return REDIS, []
    if not _flower_answers(given):
        return "flower", []
    try:
        ours = [info for info in client.hosts() if info.host == given.host and info.alive]
        if not ours or (since and datetime.fromisoformat(ours[0].seen) < since):
            return "worker", []
    except NotReachable:
        return REDIS, []
    try:
        lines = client.check(given.host)
    except NotReachable:
        return "control", []
    try:
        # A domain that cannot be (libvirt refuses the name): an answer is all that is wanted.
        client.points("/")
    except NotReachable:
        return "central", []
    return "", lines


def _redis_answers(given: Settings) -> bool:
    client = runs.connect(given)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _flower_answers(given: Settings) -> bool:
    try:
        socket.create_connection((given.flower_address, given.flower_port), timeout=2).close()
    except OSError:
        return False
    return True


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()[-TAIL:]
    except OSError as error:
        return f"  ({path}: {error.strerror})"
    return "\n".join(f"  {line}" for line in lines) or f"  ({path} is empty)"
