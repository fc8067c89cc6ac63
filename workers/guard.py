"""The pause guard: a process of its own that ends a pause whose worker has died.

``python -m workers.guard URI UUID SECONDS AGENT_SECONDS``. It prints ``armed`` once it has reached
libvirt, then reads what the worker begins (``stop``, ``freeze``) and what is over (``running``,
``thawed``). When its input ends, or SECONDS pass after ``stop`` (AGENT_SECONDS more after
``freeze``), it continues and thaws the guest, and tries on while libvirt or the agent does not
answer. Both are harmless where nothing is paused.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

import libvirt
import libvirt_qemu

# Seconds between two tries, and until the last: an operator has to look by then.
AGAIN = 1.0
GIVE_UP = 3600.0

OVER = {"running": "stop", "thawed": "freeze"}


def main() -> None:
    """Guard one instant of one domain."""
    uri, uuid, seconds, agent_seconds = sys.argv[1:]
    # The group's Ctrl-C and a service's SIGTERM are not reasons to leave a guest paused.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.open(uri).lookupByUUIDString(uuid)
    print("armed", flush=True)
    begun = watch(float(seconds), float(agent_seconds))
    until = time.monotonic() + GIVE_UP
    while begun and time.monotonic() < until:
        begun = undo(uri, uuid, begun, int(float(agent_seconds)))
        if begun:
            time.sleep(AGAIN)


def watch(seconds: float, agent_seconds: float) -> set[str]:
    """What was begun and is not over when the worker lets go or takes too long."""
    begun: set[str] = set()
    until: float | None = None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([0], [], [], left)[0]:
            return begun
        # Unbuffered: select would not see a second word that Python had read ahead.
        words = os.read(0, 4096).decode().split()
        if not words:
            return begun
        for word in words:
            if word in OVER:
                begun.discard(OVER[word])
            else:
                begun.add(word)
        patience = seconds if "stop" in begun else seconds + agent_seconds
        until = time.monotonic() + patience if begun else None


def undo(uri: str, uuid: str, begun: set[str], agent_seconds: int) -> set[str]:
    """Continue and thaw; gives what could not be done yet. A connection of each try's own."""
    left = set(begun)
    try:
        domain = libvirt.open(uri).lookupByUUIDString(uuid)
        if not domain.isActive():
            return set()
        if "stop" in left:
            reply = libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "cont"}), 0)
            if "return" in json.loads(reply):
                left.discard("stop")
        # A thaw needs a guest that runs.
        if left == {"freeze"}:
            thaw = json.dumps({"execute": "guest-fsfreeze-thaw"})
            libvirt_qemu.qemuAgentCommand(domain, thaw, agent_seconds, 0)
            left.discard("freeze")
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return set()
    return left


if __name__ == "__main__":
    main()
