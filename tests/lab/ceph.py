"""A Ceph cluster of the test's own, for RBD images: one mon and one osd, all data in memory."""

import hashlib
import socket
import subprocess
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Ceph"]

# Seconds a single command on the cluster may take; the slowest, the first after the mon's start,
# takes 1 s on two idle cores.
COMMAND_TIMEOUT = 60.0

# Pools may have one copy and that one on any osd; changes of the cluster are agreed on at once
# instead of being gathered for a second. Clients give up in the end: by default librados waits
# for ever for a cluster that is gone.
CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}/0]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
log_file =
log_to_stderr = true
[client]
rados_mon_op_timeout = 30
rados_osd_op_timeout = 30
[mon]
mon_data = {directory}/mon
mon_cluster_log_to_file = false
admin_socket =
crash_dir = {directory}
mon_allow_pool_size_one = true
osd_pool_default_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
paxos_propose_interval = 0.05
paxos_min_wait = 0.02
[osd]
osd_data = {directory}/osd
osd_objectstore = memstore
memstore_device_bytes = 1Gi
admin_socket =
crash_dir = {directory}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
"""


class Ceph:
    """A real Ceph on loopback with everything in `directory`, and nothing left when it ends.

    Its one pool `vv` keeps one copy; there is no authentication, so nothing but `conf` is needed
    to reach it. There is no mgr: images work as anywhere, but nobody counts what is used, so the
    cluster never gets full; a written byte takes two of memory. Close what has images open first:
    its requests would fail only after 30 s each.
    """

    pool = "vv"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf = directory / "ceph.conf"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.directory.mkdir()
        # QEMU reads the configuration as a user of its own.
        self.directory.chmod(0o711)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def url(self, image: str) -> str:
        """The image as qemu-img and qemu-io name it."""
        return f"rbd:{self.pool}/{image}:conf={self.conf}"

    def create(self, image: str, size: int) -> None:
        """Make an image of `size` bytes, all zeroes."""
        self.rbd("create", f"{self.pool}/{image}", "--size", f"{size}B")

    def remove(self, image: str) -> None:
        """Delete an image that nobody has open."""
        self.rbd("rm", "--no-progress", f"{self.pool}/{image}")

    def read(self, image: str) -> str:
        """The SHA-256, in hex, of the whole image as QEMU reads it."""
        copy = self.directory / f"{image}.read"
        try:
            self._run("qemu-img", "convert", "-f", "raw", "-O", "raw", self.url(image), str(copy))
            with copy.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        finally:
            copy.unlink(missing_ok=True)

    def rbd(self, *arguments: str) -> str:
        """What Ceph's own `rbd` prints; RuntimeError with its message when it fails."""
        return self._run("rbd", "--conf", str(self.conf), *arguments)

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.conf.write_text(CONF.format(fsid=uuid.uuid4(), port=port, directory=self.directory))
        self.conf.chmod(0o644)
        (self.directory / "mon").mkdir()
        (self.directory / "osd").mkdir()
        conf = ("--conf", str(self.conf))
        osd = str(uuid.uuid4())
        self._run("ceph-mon", "-i", "a", *conf, "--mkfs")
        self._serve("ceph-mon", "-i", "a", *conf)
        # A command waits until the mon answers.
        self._run("ceph", *conf, "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", *conf, "--mkfs", "--osd-uuid", osd)
        self._serve("ceph-osd", "-i", "0", *conf)
        self._run("ceph", *conf, "osd", "pool", "create", self.pool, "8")
        # Waits until the osd serves the pool.
        self.rbd("pool", "init", self.pool)

    def _serve(self, program: str, *arguments: str) -> None:
        with self._log(program).open("wb") as log:
            self._processes[program] = subprocess.Popen(
                # The kernel ends it with a test run that was killed.
                ["setpriv", "--pdeathsig", "KILL", program, *arguments, "--foreground"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C on the tests must not reach it before those who have images open.
                start_new_session=True,
            )

    def _run(self, *command: str) -> str:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"{' '.join(command)} takes too long; {self._state()}") from error
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}; {self._state()}")
        return done.stdout

    def _state(self) -> str:
        """What became of the daemons, as their logs may be gone before somebody can look."""
        return "; ".join(
            f"{program} {'runs' if process.poll() is None else f'ended with {process.returncode}'}"
            f" and said: {self._log(program).read_text(errors='replace')[-1000:].strip()!r}"
            for program, process in self._processes.items()
        )

    def _log(self, program: str) -> Path:
        return self.directory / f"{program}.log"

    def _end(self) -> None:
        # Their data ends with them: an orderly end would only write it to files.
        while self._processes:
            _, process = self._processes.popitem()
            process.kill()
            process.wait()
