"""The pause guard: a process of its own that ends a pause whose worker has died.

``python -m workers.guard URI UUID SECONDS AGENT_SECONDS``. It prints ``armed`` once it has its own
libvirt connection, then reads what the worker begins (``freeze``, ``stop``) until ``done``. When
its input ends without, or SECONDS pass after ``stop`` (AGENT_SECONDS more after ``freeze``), it
continues the guest and thaws its file systems. Both are harmless where nothing is paused.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

import libvirt
import libvirt_qemu


def main() -> None:
    """Guard one instant of one domain."""
    uri, uuid, seconds, agent_seconds = sys.argv[1:]
    # The group's Ctrl-C and a service's SIGTERM are not reasons to leave a guest paused.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    domain = libvirt.open(uri).lookupByUUIDString(uuid)
    print("armed", flush=True)
    begun = watch(float(seconds), float(agent_seconds))
    if "stop" in begun:
        with contextlib.suppress(libvirt.libvirtError):
            libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": "cont"}), 0)
    if "freeze" in begun:
        with contextlib.suppress(libvirt.libvirtError):
            thaw = json.dumps({"execute": "guest-fsfreeze-thaw"})
            libvirt_qemu.qemuAgentCommand(domain, thaw, int(float(agent_seconds)), 0)


def watch(seconds: float, agent_seconds: float) -> set[str]:
    """What was begun and must be undone; empty after ``done``."""
    begun: set[str] = set()
    until: float | None = None
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([0], [], [], left)[0]:
            return begun
        # Unbuffered: select would not see a second word that Python had read ahead.
        words = os.read(0, 4096).decode().split()
        if "done" in words:
            return set()
        if not words:
            return begun
        begun.update(words)
        until = time.monotonic() + seconds + (agent_seconds if words[-1] == "freeze" else 0)


if __name__ == "__main__":
    main()
