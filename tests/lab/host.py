"""The libvirt daemon of the machine the tests run on."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import libvirt

__all__ = ["Hypervisor", "accelerator"]

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
LOG_DIRECTORY = REPOSITORY_ROOT / ".lab" / "log"

RUN_DIRECTORY = Path("/run/libvirt")

# Seconds until a daemon we started must answer; 1-2 s is usual on two idle cores.
DAEMON_TIMEOUT = 30.0
# Seconds a daemon gets to end after SIGTERM before it is killed.
END_TIMEOUT = 10.0


def accelerator() -> Literal["qemu", "kvm"]:
    """The domain type for guests: emulation, unless VIRTVAULT_LAB_KVM=1 asks for KVM.

    /dev/kvm is not a good enough sign: under nested virtualisation it may exist and yet hang a
    guest while it boots.
    """
    return "kvm" if os.environ.get("VIRTVAULT_LAB_KVM") == "1" else "qemu"


class Hypervisor:
    """Makes `qemu:///system` answer for as long as the context lasts.

    A daemon that already answers (or is started by systemd's socket when the connection is
    opened) is used as it is and left running. Only where none answers are virtlogd and libvirtd
    started, and only those two are ended again. Their output goes to files in `log_directory`.

    Slow? Where /dev/kvm exists but QEMU's user may not open it (no udev: root:root 0600), libvirt
    distrusts what it knows of QEMU and asks anew each time: 4-12 s per definition or start
    against 0.3 s with Debian's own root:kvm 0660. The device is the machine's: set it there.
    """

    uri = "qemu:///system"

    def __init__(self, log_directory: Path = LOG_DIRECTORY) -> None:
        self.log_directory = log_directory
        self._started: list[subprocess.Popen[bytes]] = []

    def connect(self) -> libvirt.virConnect:
        """Open a new connection; the caller closes it."""
        return libvirt.open(self.uri)

    def answers(self) -> bool:
        """Whether a libvirt daemon serves `uri` now."""
        try:
            self.connect().close()
        except libvirt.libvirtError:
            return False
        return True

    def __enter__(self) -> Self:
        # By default libvirt also prints on stderr each error that it raises.
        libvirt.registerErrorHandler(lambda context, error: None, None)
        if not self.answers():
            try:
                self._start_daemons()
            except BaseException:
                self._end_daemons()
                raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end_daemons()

    def _start_daemons(self) -> None:
        for directory in (RUN_DIRECTORY, Path("/var/log/libvirt"), self.log_directory):
            directory.mkdir(parents=True, exist_ok=True)
        # libvirtd hands the guests' consoles and logs to virtlogd, so that one comes first.
        if not _accepts(RUN_DIRECTORY / "virtlogd-sock"):
            self._start("virtlogd")
        self._start("libvirtd")
        deadline = time.monotonic() + DAEMON_TIMEOUT
        while not self.answers():
            # A daemon that ended may have lost a race against another run's, which then answers.
            if time.monotonic() > deadline:
                ended = [p.args for p in self._started if p.poll() is not None]
                raise TimeoutError(
                    f"{self.uri} does not answer after {DAEMON_TIMEOUT:.0f} s"
                    f"{f' ({ended} ended)' if ended else ''}; see {self.log_directory}"
                )
            time.sleep(0.2)

    def _start(self, program: str) -> None:
        # libvirtd asks QEMU for its abilities by short-lived daemons and waits until each is
        # reaped. In a container the first process may take seconds for that; tini does it at once.
        reaper = ["tini", "-s", "--"] if shutil.which("tini") else []
        with (self.log_directory / f"{program}.log").open("ab") as log:
            self._started.append(
                subprocess.Popen(
                    [*reaper, program],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C on the tests must not reach the daemons before the guests are gone.
                    start_new_session=True,
                )
            )

    def _end_daemons(self) -> None:
        while self._started:
            process = self._started.pop()
            process.terminate()
            try:
                process.wait(END_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _accepts(path: Path) -> bool:
    """Whether something listens on the unix socket `path`; a dead daemon leaves its file behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
