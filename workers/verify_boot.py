"""Starting a point as an isolated transient domain, and waiting for a sign of life.

Its disks are overlays that are thrown away, over the point, in a storage daemon: QEMU is given
NBD and opens no file of the repository. Libvirt ends the domain with the worker's connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import libvirt

from virtvault.errors import DomainStopped, MonitorError, NotReachable, VirtvaultError
from virtvault.models import BootReport, Point, VerifyRequest
from workers import nvram, reading
from workers.engine import Engine, Ties
from workers.hypervisor import START_SECONDS, LibvirtMonitor
from workers.isolation import unix
from workers.journal import Run, sync_directory
from workers.repository import DirectoryRepository, sidecar
from workers.repository.directory import create_image
from workers.screenshot import png
from workers.verify_place import Place
from workers.verify_xml import Isolated, isolated

__all__ = ["alive", "boot", "dead", "end_domain"]

log = logging.getLogger(__name__)

# Seconds between two looks.
LOOK = 0.2
# Seconds the agent may take to answer.
AGENT_SECONDS = 2
# What a system says on its console once it is up from its own disks. An initramfs says much before,
# and would say it without any: "Welcome to …", "systemd[1]: …", "Run /init as init process".
ALIVE = re.compile(
    r"^.*(\S login: ?(?=$|\[)|"
    r"Reached target .*(Multi-User System|Graphical Interface|Login Prompts)|"
    r"INIT: Entering runlevel|Cloud-init .*finished at|SAC>).*$",
    re.MULTILINE,
)
# What it says when that will not come, though the time is not up.
DEAD = re.compile(
    r"^.*(Kernel panic|Unable to mount root|emergency mode|Emergency Mode|for maintenance|"
    r"Dropping to a shell|^\(initramfs\)|grub rescue>|^grub>|UEFI Interactive Shell|"
    r"No bootable device|BdsDxe: No bootable option).*$",
    re.MULTILINE,
)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\n]")


def boot(
    engine: Engine,
    request: VerifyRequest,
    ties: Ties,
    run: Run,
    repository: DirectoryRepository,
    point: Point,
) -> BootReport:
    """Boot a point whose data was found whole; waits up to ``request.boot_seconds``.

    What keeps it from booting is in the report; what keeps us from trying is raised.

    :raises PointBusy: it is being pruned.
    :raises NotReachable: libvirt does not answer.
    """
    place = Place(engine, run.task_id)
    ties.domain = point.domain
    ties.step("booting")
    run.draft["booting"] = True
    engine.journal.write(run)
    try:
        return _Boot(engine, request, ties, repository, point, place).seen()
    finally:
        # A domain that libvirt cannot be asked to end now is ended by whoever clears away.
        with contextlib.suppress(VirtvaultError):
            end_domain(engine, place)
            run.draft["booting"] = False
        place.remove()


def end_domain(engine: Engine, place: Place) -> None:
    """End the booted domain where it runs.

    :raises NotReachable: libvirt does not answer.
    """

    def end(connection: libvirt.virConnect) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            connection.lookupByName(place.domain).destroy()

    engine.hypervisor.call("end of the booted point", end)


class _Boot:
    def __init__(
        self,
        engine: Engine,
        request: VerifyRequest,
        ties: Ties,
        repository: DirectoryRepository,
        point: Point,
        place: Place,
    ) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.repository = repository
        self.point = point
        self.place = place
        self.directory = repository.directory(point.uuid, point.id)
        self.user = engine.hypervisor.call("capabilities", _qemu_user)
        self.owner = int(self.user.partition(":")[0]) if self.user else os.geteuid()
        self.local = place.make_local(self.owner)
        self.console = self.local / "console.log"

    def seen(self) -> BootReport:
        """Boot it and say what was seen."""
        end_domain(self.engine, self.place)
        # What an earlier boot left must not pass for this one's.
        for path in (self.console, self.directory / sidecar.SCREENSHOT):
            path.unlink(missing_ok=True)
        self._serve()
        made = self._xml()
        try:
            domain = self.engine.hypervisor.call(
                "start of the point",
                lambda c: c.createXML(
                    made.xml,
                    libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY,
                ),
                START_SECONDS,
            )
        except (MonitorError, DomainStopped) as error:
            return BootReport(False, 0.0, f"it could not be started: {error.message.rstrip('.')}")
        monitor = LibvirtMonitor(self.engine.hypervisor, domain.UUIDString(), self.place.domain)
        began = time.monotonic()
        self.engine.hypervisor.resume(monitor.uuid)
        booted, evidence = self._wait(monitor, made)
        seconds = round(time.monotonic() - began, 1)
        return BootReport(booted, seconds, evidence, self._screenshot(monitor, made))

    def _wait(self, monitor: LibvirtMonitor, made: Isolated) -> tuple[bool, str]:
        """Whether there was a sign of life in time, and what it was or why not."""
        until = time.monotonic() + self.request.boot_seconds
        connection = self.engine.hypervisor.connection()
        while True:
            console = self._console()
            if end := dead(console):
                return False, f"its console says: {end}"
            if made.agent and self._agent_answers(monitor):
                return True, "the guest agent answers"
            if sign := alive(console):
                return True, f"its console says: {sign}"
            if self.engine.hypervisor.state(monitor.uuid) in ("shut off", "crashed"):
                if self.engine.hypervisor.connection() is not connection:
                    raise NotReachable(
                        "libvirt was restarted, and the point that was booting ended with it.",
                        "Verify it again.",
                    )
                last = _last_line(console)
                return False, "it ended by itself" + (f", its console says: {last}" if last else "")
            if time.monotonic() > until:
                who = "neither its agent nor its console" if made.agent else "its console never"
                last = _last_line(console)
                return False, f"{who} answered in {self.request.boot_seconds} s" + (
                    f"; the last line there: {last}" if last else ""
                )
            self.ties.sample(())
            self.ties.check(self.engine.journal)
            time.sleep(LOOK)

    # -- its steps ----------------------------------------------------------------------------

    def _serve(self) -> None:
        """Overlays over the point, writable through NBD by QEMU's user alone."""
        settings = self.engine.settings
        socket = self.place.make_sockets(self.owner) / "point.sock"
        socket.unlink(missing_ok=True)
        self.place.daemon.end()
        self.place.daemon.start()
        # What a guest writes in so short a time is little; one gone wild must not fill the host.
        pid = int((self.place.daemon.directory / "daemon.pid").read_text())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (settings.scratch_limit,) * 2)
        with contextlib.closing(self.place.daemon.monitor(settings.qmp_timeout)) as monitor:
            # What was found of it is not written down yet: what was said before does not count.
            sources = reading.open_sources(
                monitor, settings, self.repository, self.point.id, force=True
            )
            monitor.execute("nbd-server-start", addr=unix(str(socket)))
            for target, source in sources.items():
                overlay = self.local / f"{target}.qcow2"
                overlay.unlink(missing_ok=True)
                create_image(overlay, source.disk.virtual_size)
                monitor.execute(
                    "blockdev-add",
                    driver="qcow2",
                    node_name=f"top-{target}",
                    file={"driver": "file", "filename": str(overlay)},
                    backing=source.node,
                )
                monitor.execute(
                    "block-export-add",
                    type="nbd",
                    id=target,
                    node_name=f"top-{target}",
                    name=target,
                    writable=True,
                )
        socket.chmod(0o600)
        os.chown(socket, self.owner, -1)

    def _xml(self) -> Isolated:
        variables = self.local / nvram.FILE
        stored = self.directory / nvram.FILE
        if stored.exists():
            nvram.put(stored.read_bytes(), variables)
            os.chown(variables, self.owner, -1)
        return isolated(
            (self.directory / "domain.xml").read_text(),
            name=self.place.domain,
            uuid=str(uuid.uuid4()),
            socket=self.place.sockets / "point.sock",
            exports={disk.target: disk.target for disk in self.point.disks},
            console=self.console,
            nvram=variables,
            cpus=os.cpu_count() or 1,
            user=self.user,
        )

    def _agent_answers(self, monitor: LibvirtMonitor) -> bool:
        try:
            monitor.agent("guest-ping", AGENT_SECONDS)
        except MonitorError:
            return False
        return True

    def _console(self) -> str:
        try:
            return CONTROL.sub("", self.console.read_text(errors="replace"))
        except OSError:
            return ""

    def _screenshot(self, monitor: LibvirtMonitor, made: Isolated) -> str:
        """Keep what its screen shows beside the verdict; gives the file's name, or empty."""
        path = self.directory / sidecar.SCREENSHOT
        try:
            if not made.screen:
                return ""
            _store(path, png(self.engine.hypervisor.call("screenshot", _screen(monitor.uuid))))
        except (MonitorError, DomainStopped, NotReachable, OSError, ValueError) as error:
            log.info("point %s: no screenshot: %s", self.point.id, error)
            return ""
        return sidecar.SCREENSHOT


def alive(console: str) -> str:
    """The line that shows that a system's own programs run, or empty."""
    found = ALIVE.search(console)
    return found[0].strip()[:200] if found else ""


def dead(console: str) -> str:
    """The line that shows that it will not come up, or empty."""
    found = DEAD.search(console)
    return found[0].strip()[:200] if found else ""


def _last_line(console: str) -> str:
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _qemu_user(connection: libvirt.virConnect) -> str:
    """The user and group that libvirt runs QEMU as (``+64055:+64055``), empty where as itself."""
    dac = connection.getCapabilities().partition("<model>dac</model>")[2]
    found = re.search(r"<baselabel[^>]*>(\+?\d+:\+?\d+)</baselabel>", dac)
    return found[1] if found else ""


def _screen(name: str) -> Callable[[libvirt.virConnect], bytes]:
    def take(connection: libvirt.virConnect) -> bytes:
        stream, parts = connection.newStream(), []
        connection.lookupByUUIDString(name).screenshot(stream, 0)
        stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
        stream.finish()
        return b"".join(parts)

    return take


def _store(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)
