"""What QEMU and libvirt say of all domains of this host, as it happens.

A watcher listens for the monitor events of QEMU that concern disks and jobs, and for the life
cycle of every domain, and keeps what it hears until somebody takes it. Where it could not hear
or keep something it says so with an event of its own: a gap is never silent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

import libvirt
import libvirt_qemu

from virtvault.errors import VirtvaultError
from virtvault.models import WATCHER_CONNECTED, WATCHER_DISCONNECTED, WATCHER_MISSED, Event
from virtvault.moments import written
from virtvault.settings import Settings
from workers.hypervisor import Hypervisor

__all__ = ["Watcher"]

log = logging.getLogger(__name__)

# Jobs, errors of disks, corruption of images; and what makes a guest stand, go on or end.
QEMU_EVENTS = "^(BLOCK_|(JOB_STATUS_CHANGE|STOP|RESUME|SHUTDOWN)$)"
# Events kept while nobody takes them: some minutes of a busy host with Redis away, a few MiB.
KEPT = 10_000
# Events given out at a time.
BATCH = 200
# Seconds between two looks whether libvirt is there. A look costs no round trip.
LOOK = 0.5
# Seconds a hung libvirtd may have been silent before that shows: the keep-alive of the connection
# (workers.hypervisor) allows three unanswered pings, 5 s apart, and the one under way; 20.1 s were
# seen. What is said to be missing must not begin later than what is.
SILENCE = 25.0
# Seconds between two errors of one disk. A guest on a broken disk makes thousands in that time,
# which would push everything else out of the stream.
ERROR_INTERVAL = 1.0


class Watcher:
    """Listens in threads of its own from :meth:`start` to :meth:`stop`, through restarts of
    libvirtd and on a connection of its own."""

    def __init__(self, settings: Settings, kept: int = KEPT) -> None:
        self._host = settings.host
        self._hypervisor = Hypervisor(settings)
        self._heard = _Heard(settings.host, kept)
        self._errors = _Errors()
        self._round = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="event watcher", daemon=True)

    def start(self) -> None:
        """Begin; libvirt need not be there yet."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was heard can still be taken."""
        self._stopping.set()
        self._thread.join()

    def take(self, seconds: float) -> list[Event]:
        """What was heard and not yet taken, oldest first and not all of a lot at once.

        Waits up to ``seconds`` for the first; empty where none came.
        """
        return self._heard.take(seconds)

    def _watch(self) -> None:
        since, told = "", False
        while not self._stopping.is_set():
            try:
                registered = self._hypervisor.call("registration for events", self._register)
            except VirtvaultError as error:
                if not told:
                    log.warning("no events are heard: %s", error)
                    self._tell(WATCHER_DISCONNECTED, {"reason": error.message})
                told = True
                self._stopping.wait(LOOK)
                continue
            log.info("listening for events of all domains")
            began = _moment()
            self._tell(WATCHER_CONNECTED, {"missing_since": since})
            while _alive(registered[0]) and not self._stopping.wait(LOOK):
                pass
            since = max(began, _moment(time.time() - SILENCE))
            _deregister(*registered)
            told = not self._stopping.is_set()
            if told:
                log.warning("the connection to libvirt ended; no events are heard until it is back")
                self._tell(WATCHER_DISCONNECTED, {"reason": "The connection to libvirt ended."})

    def _register(self, connection: libvirt.virConnect) -> tuple[libvirt.virConnect, int, int]:
        # A registration that came through after its time was up is not undone: the round tells
        # its callbacks that another has taken their place.
        self._round = current = self._round + 1
        lifecycle = connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lived, current
        )
        try:
            monitor = libvirt_qemu.qemuMonitorEventRegister(
                connection,
                None,
                QEMU_EVENTS,
                self._said,
                current,
                libvirt_qemu.VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX,
            )
        except libvirt.libvirtError:
            connection.domainEventDeregisterAny(lifecycle)
            raise
        return connection, lifecycle, monitor

    # Called by libvirt's event loop, which serves every connection of the process: these two
    # must neither wait nor raise.

    def _lived(
        self, _: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, of: int
    ) -> None:
        if of == self._round:
            word, details = LIFECYCLE.get(event, (f"event {event}", {}))
            data = {"detail": details.get(detail, f"detail {detail}")}
            self._add(word, _moment(), domain, data)

    def _said(
        self,
        _: libvirt.virConnect,
        domain: libvirt.virDomain,
        event: str,
        seconds: int,
        micros: int,
        details: str | None,
        of: int,
    ) -> None:
        if of != self._round:
            return
        data = _parsed(details)
        if event == "BLOCK_IO_ERROR" and self._errors.hold_back(domain.UUIDString(), data):
            return
        # QEMU writes -1 where its host's clock could not be read.
        at = _moment(seconds + micros / 1e6) if seconds > 0 else _moment()
        self._add(event, at, domain, data)

    def _add(self, event: str, at: str, domain: libvirt.virDomain, data: dict[str, Any]) -> None:
        self._heard.add(Event(at, self._host, event, domain.name(), domain.UUIDString(), data))

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        self._heard.add(Event(_moment(), self._host, event, data=data))


class _Heard:
    """Events nobody has taken yet. The oldest give way where there are too many."""

    def __init__(self, host: str, kept: int) -> None:
        self._host = host
        self._kept = kept
        self._events: deque[Event] = deque()
        self._missed = 0
        self._missed_until = ""
        self._changed = threading.Condition()

    def add(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            if len(self._events) > self._kept:
                self._missed_until = self._events.popleft().at
                self._missed += 1
            self._changed.notify()

    def take(self, seconds: float) -> list[Event]:
        with self._changed:
            self._changed.wait_for(lambda: self._events, seconds)
            taken = []
            if self._missed:
                count, self._missed = self._missed, 0
                data = {"count": count}
                taken.append(Event(self._missed_until, self._host, WATCHER_MISSED, data=data))
            while self._events and len(taken) < BATCH:
                taken.append(self._events.popleft())
            return taken


class _Errors:
    """Lets one I/O error of each disk through per interval; the next one says how many it hid."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, Any, Any], tuple[float, int]] = {}

    def hold_back(self, uuid: str, data: dict[str, Any]) -> bool:
        """Whether to drop this one; else ``data`` is given the number dropped before it."""
        now = time.monotonic()
        key = (uuid, data.get("node-name") or data.get("device"), data.get("operation"))
        when, hidden = self._shown.get(key, (-ERROR_INTERVAL, 0))
        if now - when < ERROR_INTERVAL:
            self._shown[key] = (when, hidden + 1)
            return True
        # Node names are new with each start of a domain: forget what nobody will ask for.
        self._shown = {k: v for k, v in self._shown.items() if now - v[0] < 3600}
        self._shown[key] = (now, 0)
        if hidden:
            data["not_shown"] = hidden
        return False


def _words(event: str) -> tuple[int, tuple[str, dict[int, str]]]:
    """A life cycle event's number, its word and those of its details, as libvirt names them."""
    prefix = f"VIR_DOMAIN_EVENT_{event}"
    details = {
        value: name.removeprefix(f"{prefix}_").lower().replace("_", " ")
        for name, value in vars(libvirt).items()
        if name.startswith(f"{prefix}_")
    }
    return getattr(libvirt, prefix), (event.lower(), details)


LIFECYCLE = dict(
    _words(event)
    for event in (
        *("DEFINED", "UNDEFINED", "STARTED", "SUSPENDED", "RESUMED"),
        *("STOPPED", "SHUTDOWN", "PMSUSPENDED", "CRASHED"),
    )
)


def _moment(seconds: float | None = None) -> str:
    """A time since the epoch, or now: UTC, ISO 8601, to the millisecond."""
    return written(datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC))


def _parsed(details: str | None) -> dict[str, Any]:
    """QEMU's data of an event; many have none."""
    try:
        data = json.loads(details or "{}")
    except ValueError:
        data = None
    return data if isinstance(data, dict) else {"details": details}


def _alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _deregister(connection: libvirt.virConnect, lifecycle: int, monitor: int) -> None:
    """Give a registration back. On a dead connection this fails, and yet frees it here."""
    with contextlib.suppress(libvirt.libvirtError):
        connection.domainEventDeregisterAny(lifecycle)
    with contextlib.suppress(libvirt.libvirtError):
        libvirt_qemu.qemuMonitorEventDeregister(connection, monitor)
