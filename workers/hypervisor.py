"""libvirt on this host: the connection, its event loop, and the monitor of a running domain.

Nothing here runs at import: connections are opened by the process that uses them, since one
inherited across a fork breaks both sides.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import weakref
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

from virtvault.errors import DomainStopped, MonitorError, NotReachable, UnknownDomain
from virtvault.models import DomainInfo
from virtvault.settings import Settings
from virtvault.whereabouts import MIGRATING
from workers.capabilities import Capabilities, probe
from workers.labels import labels_in
from workers.monitor import limited, qmp_arguments

__all__ = ["Hypervisor", "LibvirtMonitor", "state_word"]

T = TypeVar("T")
log = logging.getLogger(__name__)

STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "blocked",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutting down",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "suspended",
}
METADATA = re.compile(r"<metadata>.*</metadata>", re.DOTALL)
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)

# Seconds until a start counts as hung: large memory, passed-through devices and slow storage take
# their time, and a start that goes on behind our back would leave the domain standing.
START_SECONDS = 600.0

_loop_lock = threading.Lock()
_loop_started = False


def _start_event_loop() -> None:
    """Register libvirt's event loop once per process and run it for good."""
    global _loop_started
    with _loop_lock:
        if _loop_started:
            return
        libvirt.virEventRegisterDefaultImpl()
        # libvirt prints every error to stderr on its own; ours say more.
        libvirt.registerErrorHandler(lambda _ctx, _error: None, None)

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=run, name="libvirt events", daemon=True).start()
        _loop_started = True


class Hypervisor:
    """The libvirt of this host, reconnected when it was restarted."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._connection: libvirt.virConnect | None = None
        # By domain: libvirt's number of its process, new at each start, and what that can do.
        self._capabilities: dict[str, tuple[int, Capabilities]] = {}
        self._lock = threading.Lock()

    def connection(self) -> libvirt.virConnect:
        """The open connection.

        :raises NotReachable: libvirt does not answer.
        """
        _start_event_loop()
        uri = self.settings.libvirt_uri
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    if self._connection.isAlive():
                        return self._connection
                self._connection = None
            try:
                opened = limited(lambda: libvirt.open(uri), self.settings.qmp_timeout, uri)
                # A libvirtd that hangs or dies is noticed within 15 s.
                opened.setKeepAlive(5, 3)
            except libvirt.libvirtError as error:
                raise NotReachable(
                    f"libvirt at {uri} on {self.settings.host} does not answer: {error}.",
                    "Start libvirtd there (systemctl start libvirtd), or mend libvirt_uri.",
                ) from error
            self._connection = opened
            return opened

    def call(
        self, what: str, function: Callable[[libvirt.virConnect], T], seconds: float = 0.0
    ) -> T:
        """Run ``function`` on the connection, libvirt's errors made ours.

        :param seconds: the time limit; 0 for that of a QMP command.
        """
        connection = self.connection()
        limit = seconds or self.settings.qmp_timeout
        try:
            return limited(lambda: function(connection), limit, what)
        except libvirt.libvirtError as error:
            raise _translated(error, what) from error

    def domain(self, name: str) -> libvirt.virDomain:
        """A domain by name or uuid.

        :raises UnknownDomain: libvirt has none of that name.
        """

        def look(connection: libvirt.virConnect) -> libvirt.virDomain:
            try:
                return connection.lookupByUUIDString(name)
            except libvirt.libvirtError:
                return connection.lookupByName(name)

        try:
            return self.call(f"look-up of domain {name}", look)
        except DomainStopped as error:
            raise UnknownDomain(
                f"Hypervisor {self.settings.host} has no domain {name!r}.",
                "`virtvault domains` lists them.",
            ) from error

    def domains(self) -> list[DomainInfo]:
        """All domains of this host, running or not."""

        def read(connection: libvirt.virConnect) -> list[DomainInfo]:
            found = []
            for domain in connection.listAllDomains():
                # One that is undefined meanwhile is just not there.
                with contextlib.suppress(libvirt.libvirtError):
                    found.append(_described(domain, self.settings.host))
            return sorted(found, key=lambda info: info.name)

        return self.call("list of domains", read)

    def describe(self, uuid: str) -> DomainInfo:
        """One domain as it is now.

        :raises DomainStopped: libvirt has none of that uuid.
        """
        host = self.settings.host
        return self.call("look at a domain", lambda c: _described(c.lookupByUUIDString(uuid), host))

    def monitor(self, domain: libvirt.virDomain) -> LibvirtMonitor:
        """The QMP monitor of a running domain.

        :raises DomainStopped: it is not running.
        """
        if not self.call("domain state", lambda _: domain.isActive()):
            raise DomainStopped(f"Domain {domain.name()} is not running.", "Start it.")
        return LibvirtMonitor(self, domain.UUIDString(), domain.name())

    def capabilities(self, monitor: LibvirtMonitor) -> Capabilities:
        """What a domain's QEMU can do: asked once per process of it, since the answer is long."""
        number = self.call("domain id", lambda c: c.lookupByUUIDString(monitor.uuid).ID())
        known = self._capabilities.get(monitor.uuid)
        if known is None or known[0] != number:
            known = (number, probe(monitor, self.settings.qemu_as_of))
            self._capabilities[monitor.uuid] = known
        return known[1]

    def is_active(self, uuid: str) -> bool:
        """Whether the domain runs (or is paused) now."""
        try:
            domain = self.domain(uuid)
        except UnknownDomain:
            return False
        return bool(self.call("domain state", lambda _: domain.isActive()))

    def state(self, uuid: str) -> str:
        """The domain's state in libvirt's word, ``shut off`` where it is not there any more."""
        try:
            domain = self.domain(uuid)
        except UnknownDomain:
            return STATES[libvirt.VIR_DOMAIN_SHUTOFF]
        return STATES.get(self.call("domain state", lambda _: domain.state()[0]), "unknown")

    def inactive_xml(self, uuid: str) -> str:
        """The XML a domain will be started with."""
        return self.call(
            "domain XML",
            lambda c: str(c.lookupByUUIDString(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)),
        )

    def start_paused(self, uuid: str) -> None:
        """Start a domain whose CPUs have not run yet."""
        self.call(
            "start of the domain",
            lambda c: c.lookupByUUIDString(uuid).createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED),
            START_SECONDS,
        )

    def resume(self, uuid: str) -> None:
        """Let a paused domain run; one that somebody else has let run is left alone."""

        def resume(connection: libvirt.virConnect) -> None:
            domain = connection.lookupByUUIDString(uuid)
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()

        self.call("resume of the domain", resume)

    def end_unstarted(self, uuid: str) -> None:
        """End a domain that :meth:`start_paused` started and that has never run; others stay."""
        try:
            monitor = self.monitor(self.domain(uuid))
            # QEMU's word for CPUs that have not run one instruction: `paused` ones have.
            if monitor.execute("query-status")["status"] == "prelaunch":
                self.call("end of the domain", lambda c: c.lookupByUUIDString(uuid).destroy())
        except (DomainStopped, UnknownDomain):
            return

    def watch_start(self, uuid: str) -> StartWatch:
        """Watch from now on whether a domain is started."""
        return StartWatch(self, uuid)

    def is_suspended_by_user(self, uuid: str) -> bool:
        """Whether the domain stands because of virDomainSuspend, not of a QMP ``stop`` of ours."""
        state, reason = self.call(
            "domain state", lambda c: tuple(c.lookupByUUIDString(uuid).state()[:2])
        )
        return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_USER)

    def versions(self) -> dict[str, str]:
        """Versions of libvirt and of QEMU as libvirt knows it."""

        def read(connection: libvirt.virConnect) -> dict[str, str]:
            return {
                "libvirt": _dotted(connection.getLibVersion()),
                "qemu": _dotted(connection.getVersion()),
            }

        return self.call("versions", read)


class StartWatch:
    """Tells whether a domain may have been started since it was made."""

    def __init__(self, hypervisor: Hypervisor, uuid: str) -> None:
        self._started = threading.Event()
        started = weakref.ref(self._started)

        def seen(_connection: Any, _domain: Any, event: int, *_: Any) -> None:
            flag = started()
            if flag is not None and event == libvirt.VIR_DOMAIN_EVENT_STARTED:
                flag.set()

        def register(connection: libvirt.virConnect) -> tuple[libvirt.virConnect, int]:
            number = connection.domainEventRegisterAny(
                connection.lookupByUUIDString(uuid),
                libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                seen,
                None,
            )
            return connection, number

        self._registered: tuple[libvirt.virConnect, int] = hypervisor.call(
            "event registration", register
        )

    def perhaps(self) -> bool:
        """True where it was started, and where libvirtd was away so that nobody would have told."""
        try:
            return self._started.is_set() or not self._registered[0].isAlive()
        except libvirt.libvirtError:
            return True

    def close(self) -> None:
        """Stop watching."""
        with contextlib.suppress(libvirt.libvirtError):
            self._registered[0].domainEventDeregisterAny(self._registered[1])


class LibvirtMonitor:
    """QMP through libvirt to one running domain, waking on its block job events.

    It keeps the uuid, not libvirt's object: after a libvirtd restart the object's connection is
    dead, and the next command goes over a new one.
    """

    def __init__(self, hypervisor: Hypervisor, uuid: str, name: str) -> None:
        self.uuid = uuid
        self.name = name
        self._hypervisor = hypervisor
        self._event = threading.Event()
        self._registered: tuple[libvirt.virConnect, int] | None = None

    @cached_property
    def capabilities(self) -> Capabilities:
        """See :attr:`workers.monitor.Monitor.capabilities`."""
        return self._hypervisor.capabilities(self)

    def execute(self, command: str, **arguments: Any) -> Any:
        """See :meth:`workers.monitor.Monitor.execute`."""
        text = json.dumps({"execute": command, "arguments": qmp_arguments(arguments)})
        reply = json.loads(
            self._hypervisor.call(
                f"QMP {command} on domain {self.name}",
                lambda c: libvirt_qemu.qemuMonitorCommand(c.lookupByUUIDString(self.uuid), text, 0),
            )
        )
        if "error" in reply:
            raise MonitorError(
                f"QEMU of domain {self.name} refused {command}: {reply['error'].get('desc')}"
            )
        return reply["return"]

    def agent(self, command: str, seconds: int) -> Any:
        """Ask the guest agent, for at most ``seconds``.

        :raises MonitorError: there is none, it refused, or it did not answer in time.
        """
        try:
            reply = self._hypervisor.call(
                f"guest agent {command}",
                lambda c: libvirt_qemu.qemuAgentCommand(
                    c.lookupByUUIDString(self.uuid),
                    json.dumps({"execute": command}),
                    seconds,
                    0,
                ),
            )
        except (DomainStopped, NotReachable) as error:
            raise MonitorError(error.message) from error
        return json.loads(reply)["return"]

    def xml(self) -> str:
        """The live domain XML."""
        text: str = self._hypervisor.call(
            f"XML of domain {self.name}", lambda c: c.lookupByUUIDString(self.uuid).XMLDesc()
        )
        return text

    def wait(self, seconds: float) -> None:
        """See :meth:`workers.monitor.Monitor.wait`."""
        if self._registered is None:
            self._listen()
        self._event.wait(seconds)
        self._event.clear()

    def close(self) -> None:
        """Stop listening."""
        registered, self._registered = self._registered, None
        if registered is not None:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt_qemu.qemuMonitorEventDeregister(*registered)

    def _listen(self) -> None:
        """Have events wake us. Without (libvirtd away) the poll goes on at its own pace."""
        # A weak reference: the callback stays with libvirt's loop and must not keep us alive.
        event = weakref.ref(self._event)

        def woken(*_: Any) -> None:
            if (flag := event()) is not None:
                flag.set()

        def register(connection: libvirt.virConnect) -> tuple[libvirt.virConnect, int]:
            domain = connection.lookupByUUIDString(self.uuid)
            number = libvirt_qemu.qemuMonitorEventRegister(
                connection,
                domain,
                "^(BLOCK_JOB_|JOB_STATUS_CHANGE)",
                woken,
                None,
                libvirt_qemu.VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX,
            )
            return connection, number

        try:
            self._registered = self._hypervisor.call("event registration", register)
        except (DomainStopped, MonitorError, NotReachable) as error:
            log.info("no events from domain %s: %s", self.name, error)


def state_word(state: int, reason: int) -> str:
    """libvirt's word for a state; ``migrating`` where the domain is paused only for that."""
    migrates = (libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY)
    if state == libvirt.VIR_DOMAIN_PAUSED and reason in migrates:
        return MIGRATING
    return STATES.get(state, "unknown")


def _described(domain: libvirt.virDomain, host: str) -> DomainInfo:
    root = _root(domain.XMLDesc(), domain.name())
    found = root.findall("./devices/disk[@device='disk']/target")
    return DomainInfo(
        name=domain.name(),
        uuid=domain.UUIDString(),
        host=host,
        state=state_word(*domain.state()[:2]),
        disks=len(found),
        targets=tuple(target.get("dev", "") for target in found),
        labels=labels_in(root),
        transient=not domain.isPersistent(),
    )


def _root(xml: str, name: str) -> ElementTree.Element:
    """A domain's XML, read as far as it can be."""
    # Libvirt wrote it, and yet takes a prefix in metadata that nobody has declared.
    try:
        return ElementTree.fromstring(xml)  # noqa: S314
    except ElementTree.ParseError as error:
        log.warning("the metadata of domain %s is left out: %s", name, error)
        return ElementTree.fromstring(METADATA.sub("", xml))  # noqa: S314


def _translated(error: libvirt.libvirtError, what: str) -> Exception:
    code = error.get_error_code()
    text = error.get_error_message()
    if code in _GONE:
        return DomainStopped(f"{what}: {text}.", "Start the domain and back it up again.")
    # A hung or ended libvirtd shows as an internal error of the RPC layer, not as one code.
    if error.get_error_domain() == libvirt.VIR_FROM_RPC or code in (
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_NO_CONNECT,
    ):
        return NotReachable(f"{what}: libvirt does not answer: {text}.", "See libvirtd's log.")
    return MonitorError(f"{what} failed: {text}.")


def _dotted(number: int) -> str:
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
