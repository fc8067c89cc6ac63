"""The first half of every run: from a request to the captured instant and its jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from virtvault.errors import NothingToBackUp, WorkFailed
from virtvault.models import BackupRequest
from workers import disks as disk_view
from workers.bitmap_owners import require_user_bitmap
from workers.capture.choice import choose_way, start_unrun
from workers.capture.way import Capture, Plans
from workers.disks import Disk
from workers.engine import Engine, Ties
from workers.journal import Run
from workers.plan import DiskPlan
from workers.record import draft_disk
from workers.targets import Targets, qemu_uid

__all__ = ["Begin"]


@dataclass
class Begin:
    """``plan`` decides for one disk; ``store`` makes room for what will be written
    and gives notes.

    ``alone`` keeps prune away from the domain's points until what is planned names its parents.
    ``under_way`` is the run's phase once its jobs, or its exports, are there.
    """

    engine: Engine
    request: BackupRequest
    ties: Ties
    run: Run
    targets: Targets
    plan: Callable[[Capture, Disk], DiskPlan]
    store: Callable[[str], list[str]]
    alone: Callable[[], AbstractContextManager[None]]
    under_way: str

    def go(self) -> Capture:
        """Plan, open targets, make new bitmaps, take the instant, start the jobs.

        Gives the way it was captured, which the caller closes.
        """
        self.ties.step("preparing")
        self.ties.check(self.engine.journal)
        if self.request.start_paused:
            start_unrun(self.engine, self.run)
        capture = choose_way(self.engine, self.run, self.targets)
        try:
            # In the journal from here: to look at images a storage daemon may be started.
            self.run.phase, self.run.error, self.run.draft = "planned", "", {}
            self.run.way, self.run.targets = capture.name, []
            self.engine.journal.write(self.run)
            self._capture(capture)
        except BaseException:
            capture.close()
            raise
        return capture

    def _capture(self, capture: Capture) -> None:
        run, journal = self.run, self.engine.journal
        chosen, skipped = self._choose(capture)
        capture.refuse(chosen)
        xml = capture.xml()
        with self.alone():
            plans: Plans = {disk.target: self.plan(capture, disk) for disk in chosen}
            run.targets = [disk.target for disk in chosen]
            journal.write(run)
            stored = self.store(xml)
            uid = os.geteuid() if capture.name == "offline" else qemu_uid(xml)
            self.targets.open(chosen, plans, uid, capture.name)

        run.phase = "standing"
        run.was_running = capture.state == "running"
        journal.write(run)
        capture.stand(chosen, plans)

        run.phase = "instant"
        journal.write(run)
        self.ties.step("instant")
        taken = capture.take(chosen, plans, self.request.freeze, self.request.speed)
        chosen, plans = self._look_again(capture, chosen, plans)
        run.draft = {
            "instant": taken.at,
            "consistency": "agent-frozen" if taken.frozen else "crash-consistent",
            "paused_ms": taken.paused_ms,
            "frozen_ms": taken.frozen_ms,
            "notes": [*capture.notes(), *taken.notes, *stored],
            "skipped": skipped,
            "isolated": capture.isolated,
            "state": capture.state,
            "disks": [
                draft_disk(
                    disk,
                    plans[disk.target],
                    run.bitmap(disk.target).name,
                    capture.witness(disk),
                )
                for disk in chosen
            ],
            "qemu": capture.monitor().execute("query-version")["qemu"],
            "jobs_started": time.time(),
        }
        capture.start(chosen, plans, self.request.speed)
        run.phase = self.under_way
        journal.write(run)

    def _choose(self, capture: Capture) -> tuple[list[Disk], dict[str, str]]:
        """The disks to capture, and why not the others."""
        chosen, skipped = disk_view.choose(capture.disks(), self.request.disks, self.run.domain)
        if not chosen:
            raise NothingToBackUp(
                f"Domain {self.run.domain} has no disk that can be backed up"
                + "".join(f"; {t}: {why}" for t, why in skipped.items())
                + ".",
                "`virtvault disks` shows them.",
            )
        if self.request.bitmap:
            require_user_bitmap(
                self.engine, self.run.uuid, self.run.domain, chosen, self.request.bitmap
            )
        return chosen, skipped

    def _look_again(
        self, capture: Capture, chosen: list[Disk], plans: Plans
    ) -> tuple[list[Disk], Plans]:
        """The disks and plans as they are now, after the instant.

        A snapshot taken between plan and instant has put an overlay on top, with an empty bitmap
        of the parent's name: what the guest wrote by then is in bitmaps the plan did not know.

        :raises WorkFailed: the disks changed so that the images made for them do not fit.
        """
        found = {d.target: d for d in capture.disks()}
        now_there = [found[d.target] for d in chosen if d.target in found]
        fresh = {
            d.target: self.plan(capture, d)
            if plans[d.target].parent and capture.plans_again
            else plans[d.target]
            for d in now_there
        }
        if len(now_there) != len(chosen) or any(
            fresh[after.target].parent != plans[after.target].parent
            or (plans[after.target].sync == "top" and len(after.layers) != len(before.layers))
            or capture.moved(before, after)
            for before, after in zip(chosen, now_there, strict=True)
        ):
            raise WorkFailed(
                f"The disks of domain {self.run.domain} were changed while the backup began.",
                "Back up again.",
            )
        return now_there, fresh
