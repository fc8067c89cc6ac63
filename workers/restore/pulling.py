"""Pulling a point's data into the overlays of a domain that runs from it, until none needs it.

Asked anew at each look: which overlay is whole, whether the domain runs, which jobs there are. So
it makes no difference who began what, or what ended meanwhile: worker, daemon or guest.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtvault.errors import MonitorError, VirtvaultError, WorkFailed
from virtvault.models import DiskProgress
from workers import definitions, jobs
from workers.domain_xml import image_indexes
from workers.exports import Export
from workers.hypervisor import LibvirtMonitor
from workers.images import absent
from workers.monitor import Monitor
from workers.repository.manifest import backing_of

if TYPE_CHECKING:
    from workers.restore.instant import Instant

__all__ = ["Pulling"]

log = logging.getLogger(__name__)

# Seconds a domain is shut off before its images are taken for an offline pull: one that is just
# being started again would find them locked.
SHUT_OFF = 5.0
# Seconds between two tries of what failed.
AGAIN = 2.0


class Pulling:
    """The pull of one run."""

    def __init__(self, story: Instant) -> None:
        self.story = story
        self.sizes = {disk.target: disk.virtual_size for disk in story.disks}
        self.whole: set[str] = set()
        self.speed = story.request.speed
        self._hypervisor = story.engine.hypervisor
        self._uuid = story.domain.uuid
        self._monitor: LibvirtMonitor | None = None
        self._tried: dict[str, float] = {}
        self._unnoticed: dict[str, float] = {}
        self._shut_off_since = 0.0

    def to_the_end(self) -> None:
        """Return when every overlay is whole and nothing has the point open.

        :raises Cancelled: somebody asked for it.
        :raises Detached: the worker is stopping.
        """
        interval = self.story.engine.pace.shortest
        try:
            while True:
                try:
                    disks = self._look()
                except (VirtvaultError, OSError) as error:
                    # libvirt, the repository, the daemon, room: what is away comes back.
                    log.warning("task %s: %s", self.story.run.task_id, error)
                    if reason := self.story.gone():
                        self.story.give_up(reason)
                    disks, interval = (), self.story.engine.pace.longest
                if len(self.whole) == len(self.sizes):
                    return
                self.story.sample(disks)
                self._wait(interval)
                interval = min(interval * 1.5, self.story.engine.pace.longest)
        finally:
            self._close()

    def _look(self) -> tuple[DiskProgress, ...]:
        if not self.story.daemon.alive():
            log.warning("task %s: its storage daemon ended; again", self.story.run.task_id)
            self.story.serve()
            self._tried.clear()
        found = {t: DiskProgress(t, size, size, "concluded") for t, size in self.sizes.items()}
        pending = [target for target in self.sizes if target not in self.whole]
        if self._hypervisor.is_active(self._uuid):
            self._shut_off_since = 0.0
            for target in pending:
                found[target] = self._in_qemu(target)
        else:
            self._close()
            self._shut_off_since = self._shut_off_since or time.monotonic()
            with contextlib.closing(self.story.monitor()) as monitor:
                for target in pending:
                    found[target] = self._in_daemon(monitor, target)
        return tuple(found.values())

    # -- while the domain runs ----------------------------------------------------------------

    def _in_qemu(self, target: str) -> DiskProgress:
        """Tend one disk; one at a time is pulled.

        By a job of ours, not by libvirt's blockpull: where one fails under a guest that writes,
        QEMU 7.2 keeps its filter with nothing below, and dies of the next
        ``query-named-block-nodes`` (seen; libvirt asks that at the end of each pull). Ours waits
        at an error until it is resumed here. So does the guest: instead of being told of an error
        it is stopped, and runs on.
        """
        monitor = self._qemu()
        definitions.resume_after_fault(self._hypervisor, self._uuid)
        running = jobs.listed(monitor)
        job = running.get(f"virtvault-{self.story.tag}-{target}")
        if job is not None:
            self.speed = job["speed"]
            if job["io-status"] != "ok" and self._may_try(target):
                monitor.execute("block-job-resume", device=job["device"])
            return DiskProgress(target, job["offset"], job["len"], job["status"])
        node, below = self._nodes(monitor, target)
        if not node:
            # Unplugged: nobody has the image open, and it is pulled as if all were shut off.
            with contextlib.closing(self.story.monitor()) as daemon:
                return self._in_daemon(daemon, target)
        if not running:
            self._next_step(monitor, target, node, below)
        done = self.sizes[target] if target in self.whole else 0
        return DiskProgress(target, done, self.sizes[target], "waiting")

    def _next_step(self, monitor: LibvirtMonitor, target: str, node: str, below: str) -> None:
        if backing_of(self._overlay(target)):
            if self._may_try(target):
                monitor.execute(
                    "block-stream",
                    job_id=f"virtvault-{self.story.tag}-{target}",
                    device=node,
                    speed=self.speed,
                    on_error="stop",
                )
            return
        # The header is written before all of the tables that it goes with.
        _qemu_io(monitor, node, "flush")
        if not self._absent(target):
            # Have QEMU close what it has still open of the point.
            for role in ("format", "storage"):
                with contextlib.suppress(MonitorError):  # gone by itself
                    if below:
                        monitor.execute("blockdev-del", node_name=f"{below}-{role}")
            self.whole.add(target)

    def _nodes(self, monitor: LibvirtMonitor, target: str) -> tuple[str, str]:
        """The node of an overlay, under a snapshot perhaps, and what the nodes below begin with.

        By libvirt's XML: QEMU 7.2 must not be asked for its nodes while a stream concludes.
        """
        own, below = image_indexes(monitor.xml(), str(self._overlay(target)))
        return own and f"libvirt-{own}-format", below and f"libvirt-{below}"

    def _qemu(self) -> LibvirtMonitor:
        if self._monitor is None:
            self._monitor = self._hypervisor.monitor(self._hypervisor.domain(self._uuid))
        return self._monitor

    # -- while it is shut off -----------------------------------------------------------------

    def _in_daemon(self, monitor: Monitor, target: str) -> DiskProgress:
        job_id, node = f"virtvault-{self.story.tag}-{target}", f"dst-{target}"
        job = jobs.listed(monitor).get(job_id)
        if job is not None and job["status"] != "concluded":
            self.speed = job["speed"]
            return DiskProgress(target, job["offset"], job["len"], job["status"])
        if job is not None:
            monitor.execute("job-dismiss", id=job_id)
            # Closes the image, and so writes all of it.
            monitor.execute("blockdev-del", node_name=node)
        overlay = self._overlay(target)
        if not backing_of(overlay):
            if not self._absent(target):
                self.whole.add(target)
                return DiskProgress(target, self.sizes[target], self.sizes[target], "concluded")
            self._back_again(target)
        late = time.monotonic() - self._shut_off_since > SHUT_OFF
        if late and self._may_try(target):
            self._pull_in_daemon(monitor, target, job_id, node)
        return DiskProgress(target, 0, self.sizes[target], "waiting")

    def _pull_in_daemon(self, monitor: Monitor, target: str, job_id: str, node: str) -> None:
        monitor.execute(
            "blockdev-add",
            driver="qcow2",
            node_name=node,
            file={"driver": "file", "filename": str(self._overlay(target))},
            backing=f"src-{target}",
        )
        try:
            monitor.execute(
                "block-stream",
                job_id=job_id,
                device=node,
                speed=self.speed,
                auto_dismiss=False,
            )
        except MonitorError:
            monitor.execute("blockdev-del", node_name=node)
            raise

    def _back_again(self, target: str) -> None:
        """QEMU was killed after it wrote that nothing is below, and before what it had pulled."""
        url = Export(target, str(self.story.socket), "").url
        command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", url, "-F", "raw"]
        done = subprocess.run(
            [*command, str(self._overlay(target))],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WorkFailed(f"{self._overlay(target)}: {done.stderr.strip()}.", "Try again.")

    # -- small things -------------------------------------------------------------------------

    def _overlay(self, target: str) -> Path:
        return self.story.overlays[target]

    def _absent(self, target: str) -> int:
        """The bytes of the point's disk that are not in its overlay; the guest's may be larger."""
        return absent(self._overlay(target), self.sizes[target])

    def _may_try(self, target: str) -> bool:
        """Whether the last try was long enough ago."""
        if time.monotonic() - self._tried.get(target, -AGAIN) < AGAIN:
            return False
        self._tried[target] = time.monotonic()
        return True

    def _wait(self, seconds: float) -> None:
        if self._monitor is not None:
            self._monitor.wait(seconds)
        else:
            time.sleep(seconds)

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


def _qemu_io(monitor: Monitor, node: str, command: str) -> Any:
    return monitor.execute("human-monitor-command", command_line=f'qemu-io {node} "{command}"')
