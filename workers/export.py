"""``sync=none``: a domain's disks as they were at one instant, served read-only until closed.

Nothing is copied beforehand: what the guest overwrites goes to the scratch image first, and the
snapshot node reads from there. The guest never waits for a reader, and where its scratch is used
up the export ends and the guest goes on.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import time
from pathlib import Path

from virtvault import schemas
from virtvault.errors import (
    DomainStopped,
    JobFailed,
    MonitorError,
    NotReachable,
    VirtvaultError,
    WorkFailed,
)
from virtvault.models import BackupRequest, DiskProgress, ExportedDisk, ExportResult
from workers import isolation, slots
from workers.capture.begin import Begin
from workers.capture.choice import again, let_run
from workers.engine import Engine, Ties, now
from workers.isolation import Names
from workers.jobs import BROKEN, Detached
from workers.journal import Run
from workers.plan import DiskPlan
from workers.recovery import Undo
from workers.targets import Targets, qemu_uid

__all__ = ["Export"]

log = logging.getLogger(__name__)

# Seconds between two looks whether a reader would still be answered.
LOOK = 1.0


class Export:
    """The run of one snapshot export, holding its domain."""

    def __init__(self, engine: Engine, request: BackupRequest, ties: Ties, run: Run) -> None:
        self.engine = engine
        self.request = request
        self.ties = ties
        self.run = run
        self.targets = Targets(engine.settings, run)

    def carry_on(self) -> ExportResult:
        """Open the export, or tend one that an earlier worker opened, until it is closed.

        :raises DomainStopped: its domain ended, and the export with it.
        :raises JobFailed: the scratch image was full, failed or stalled.
        """
        undo = Undo(self.engine, self.run)
        try:
            if self.run.error:
                raise WorkFailed(f"The export had ended before: {self.run.error}.")
            if self.run.phase != "open":
                if self.run.phase != "planned" or self.run.way or self.run.unstarted:
                    undo.all()
                self._open()
            result = self._tend()
        except Detached:
            log.info("task %s: detached, its export stays open", self.run.task_id)
            raise
        except BaseException as error:
            self.run.error = str(error) or type(error).__name__
            if self.run.phase != "planned":
                self.engine.journal.write(self.run)
            try:
                undo.all()
            except VirtvaultError as later:
                log.error("task %s: not all is undone yet: %s", self.run.task_id, later)
            raise
        self.engine.journal.remember(self.run.task_id, schemas.dump(result))
        return self.closed(result)

    def closed(self, result: ExportResult) -> ExportResult:
        """Take everything out of QEMU again; the result is kept already."""
        # From here on what is left to undo is anybody's, should we be killed.
        self.run.error = "closed by hand"
        self.engine.journal.write(self.run)
        Undo(self.engine, self.run).all()
        return result

    # -- the story ----------------------------------------------------------------------------

    def _open(self) -> None:
        slots.require_one_for_others(self.engine, self.run.task_id)
        Begin(
            self.engine,
            self.request,
            self.ties,
            self.run,
            self.targets,
            plan=lambda _capture, _disk: DiskPlan("none", counts=False),
            store=lambda _xml: [],
            alone=contextlib.nullcontext,
            under_way="captured",
        ).go().close()
        monitor = self.engine.hypervisor.monitor(self.engine.hypervisor.domain(self.run.uuid))
        try:
            socket = self.targets.served(qemu_uid(monitor.xml()))
            self.run.serving = True
            self.engine.journal.write(self.run)
            try:
                monitor.execute("nbd-server-start", addr=isolation.unix(socket))
            except MonitorError as error:
                self.run.serving = False  # and so not ours to stop
                raise WorkFailed(
                    error.message,
                    "Where its server runs already, a pull backup or a migration uses it: wait "
                    "for its end, then try again.",
                ) from error
            isolation.serve(monitor, [Names(self.run.tag, t) for t in self.run.targets])
        finally:
            monitor.close()
        self.run.phase = "open"
        self.engine.journal.write(self.run)

    def _tend(self) -> ExportResult:
        """Look after it until somebody closes it."""
        let_run(self.engine, self.run)
        urls = {t: self.targets.served_url(t) for t in self.run.targets}
        self.ties.exports = urls
        self.ties.step("open", self.run.draft["instant"])
        wish = self.engine.journal.wishes(self.run.task_id)
        while not wish.exists():
            if self.ties.stopping():
                raise Detached
            try:
                self._look(urls)
            except NotReachable as error:
                # libvirtd restarts do not touch QEMU, nor who reads from it.
                log.info("task %s: not looked after now: %s", self.run.task_id, error)
            self._sample()
            until = time.monotonic() + LOOK
            while time.monotonic() < until and not wish.exists() and not self.ties.stopping():
                time.sleep(0.05)
        return self._result(urls)

    def _look(self, urls: dict[str, str]) -> None:
        """See that the domain runs and that each snapshot still answers."""
        capture = again(self.engine, self.run, self.targets)
        capture.close()
        for target, url in urls.items():
            try:
                done = subprocess.run(
                    ["qemu-io", "-r", "-f", "raw", "-c", "read 0 512", url],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=self.engine.settings.stall_seconds,
                )
            except subprocess.TimeoutExpired as error:
                raise JobFailed(
                    f"The export of disk {target} of domain {self.run.domain} does not answer.",
                    "See whether its QEMU hangs.",
                ) from error
            if done.returncode == 0 and "failed" not in done.stdout + done.stderr:
                continue
            if self._domain_ends():
                raise DomainStopped(
                    f"Domain {self.run.domain} ended, and the export of its disks with it.",
                    "Start it and export it again.",
                )
            raise JobFailed(
                f"The export of disk {target} of domain {self.run.domain} ended: {BROKEN}.",
                "Give it a larger scratch_limit, or close exports sooner.",
            )

    def _domain_ends(self) -> bool:
        """Whether the domain has ended, or does within the moment that libvirt needs to tell."""
        until = time.monotonic() + 2 * LOOK
        while self.engine.hypervisor.is_active(self.run.uuid):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def _sample(self) -> None:
        """What the scratch images hold, of what they may."""
        limit = self.engine.settings.scratch_limit
        self.ties.sample(
            tuple(DiskProgress(t, self._scratch(t), limit, "open") for t in self.run.targets)
        )

    def _result(self, urls: dict[str, str]) -> ExportResult:
        draft = self.run.draft
        sizes = {disk["target"]: disk["virtual_size"] for disk in draft["disks"]}
        return ExportResult(
            task_id=self.run.task_id,
            domain=self.run.domain,
            uuid=self.run.uuid,
            host=self.engine.settings.host,
            state="closed",
            consistency=draft["consistency"],
            instant=draft["instant"],
            paused_ms=draft["paused_ms"],
            frozen_ms=draft["frozen_ms"],
            started=self.run.started,
            finished=now(),
            exports=tuple(
                ExportedDisk(t, url, sizes[t], self._scratch(t)) for t, url in urls.items()
            ),
            skipped=draft["skipped"],
            notes=tuple(draft["notes"]),
        )

    def _scratch(self, target: str) -> int:
        try:
            return Path(self.targets.scratch(target).image).stat().st_blocks * 512
        except OSError:
            return 0
