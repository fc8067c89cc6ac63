"""A second libvirt daemon on this machine, to which guests can migrate."""

import shutil
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt

from tests.lab.domain import give_to_qemu

__all__ = ["SecondHypervisor"]

# What is its own; all else, the guests' images above all, it shares with the machine.
PRIVATE = (
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/run/libvirt",
)

# Seconds until the daemon must answer; 0.2 s is usual.
START_TIMEOUT = 30.0
END_TIMEOUT = 10.0


class SecondHypervisor:
    """libvirtd in namespaces of its own: another host name, uuid and socket, and its own state.

    Guests reach it through `channel`, the URI for libvirt's parameter `migrate_uri`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = f"qemu+unix:///system?socket={directory}/libvirt-sock"
        self.channel = f"unix://{directory}/channel/migration"
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> libvirt.virConnect:
        """Open a new connection; the caller closes it."""
        return libvirt.open(self.uri)

    def __enter__(self) -> Self:
        self.directory.mkdir()
        self.directory.chmod(0o711)
        # QEMU itself makes the socket there.
        (self.directory / "channel").mkdir()
        give_to_qemu(self.directory / "channel")
        private = [self.directory / f"private{place.replace('/', '-')}" for place in PRIVATE]
        for path in private:
            path.mkdir()
        (private[0] / "libvirtd.conf").write_text(
            f'host_uuid = "{uuid.uuid4()}"\nunix_sock_dir = "{self.directory}"\n'
        )
        (private[0] / "qemu.conf").write_text('cgroup_controllers = []\nstdio_handler = "file"\n')
        binds = [f"mount --bind {own} {there}" for own, there in zip(private, PRIVATE, strict=True)]
        start = " && ".join(
            ["hostname second", *binds, f"exec libvirtd --pid-file {self.directory}/pid"]
        )
        reaper = ["tini", "-s", "--"] if shutil.which("tini") else []
        with self._log().open("wb") as log:
            self._process = subprocess.Popen(
                [*reaper, "unshare", "--mount", "--uts", "--net", "--ipc", "sh", "-c", start],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self._end()
                raise TimeoutError(f"no second libvirtd: {self._log().read_text()[-1000:]}")
            time.sleep(0.1)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except libvirt.libvirtError:
            return False
        return True

    def _end(self) -> None:
        """End the daemon; the namespaces and what is mounted in them go with it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _log(self) -> Path:
        return self.directory / "libvirtd.log"
