"""QEMU's monitor of one domain: QMP commands, and requests through the guest's own disks."""

import json
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from tests.lab.qemu_log import QemuLog, check_result

__all__ = ["Monitor"]


class Monitor:
    """Speaks to the QEMU of `domain` through libvirt; `log_path` is that QEMU's log."""

    def __init__(self, domain: libvirt.virDomain, log_path: Path) -> None:
        self._domain = domain
        self._log = QemuLog(log_path)
        # Results in the log are told apart by their place, so one request at a time.
        self._io_lock = threading.Lock()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command and give its `return`.

        Raises RuntimeError with QEMU's class and text when the reply is an error.
        """
        request = json.dumps({"execute": command, "arguments": arguments})
        reply = json.loads(libvirt_qemu.qemuMonitorCommand(self._domain, request, 0))
        if "error" in reply:
            raise RuntimeError(f"{command}: {reply['error']['class']}: {reply['error']['desc']}")
        return reply["return"]

    def qemu_io(self, target: str, command: str) -> float:
        """Run a qemu-io command through the guest's own device; gives the seconds it took.

        Addressed by device, not by node: bitmaps and filters see the request like the guest's
        own, whatever was put between device and image. Asynchronous commands are not supported.

        Raises GuestWriteFailed when QEMU's log shows that the request failed or shows no result.
        """
        with self._io_lock:
            # An unknown command is echoed in the log, so it marks where the result ends, also
            # that of a command that prints nothing.
            marker = f"lab-end-{time.monotonic_ns()}"
            start = self._log.end()
            begun = time.monotonic()
            self._hmp_qemu_io(target, command)
            seconds = time.monotonic() - begun
            self._hmp_qemu_io(target, marker)
            output = self._log.until(f'command "{marker}"', start)
        check_result(command, output)
        return seconds

    def _hmp_qemu_io(self, target: str, command: str) -> None:
        line = f'qemu-io -d {self.qdev(target)} "{command}"'
        self.qmp("human-monitor-command", **{"command-line": line})

    def qdev(self, target: str) -> str:
        """The id or QOM path under which QEMU knows the device of the disk `target`."""
        devices = ElementTree.fromstring(self._domain.XMLDesc())
        for disk in devices.iterfind("./devices/disk"):
            where, alias = disk.find("target"), disk.find("alias")
            if where is not None and alias is not None and where.get("dev") == target:
                name = alias.get("name", "")
                # virtio-blk's drive belongs to the device inside the PCI one.
                virtio = where.get("bus") == "virtio"
                return f"/machine/peripheral/{name}/virtio-backend" if virtio else name
        raise KeyError(f"{self._domain.name()} has no active disk {target}")
