"""Capture of a running or paused domain with its guest set apart from the backup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers import disks as disk_view
from workers import instant, isolation, witness
from workers.capture.way import Plans, backup_action, new_bitmap
from workers.coexistence import require_quiet
from workers.disks import Disk
from workers.engine import Engine
from workers.hypervisor import LibvirtMonitor
from workers.instant import Instant
from workers.isolation import Names
from workers.journal import Run
from workers.plan import DiskPlan
from workers.targets import Targets

__all__ = ["Isolated"]


class Isolated:
    """Filter and snapshot node over each disk: see :mod:`workers.isolation`."""

    name = "isolated"
    isolated = True
    plans_again = True

    def __init__(
        self, engine: Engine, run: Run, targets: Targets, monitor: LibvirtMonitor, state: str
    ) -> None:
        self.engine = engine
        self.run = run
        self.targets = targets
        self.state = state
        self._monitor = monitor
        self._witnessed: set[str] = set()
        self._unwitnessed: list[str] = []

    def disks(self) -> list[Disk]:
        """See :class:`workers.capture.way.Capture`."""
        return disk_view.discover(self._monitor, self._monitor.xml())

    def xml(self) -> str:
        """The live XML of the domain."""
        return self._monitor.xml()

    def refuse(self, chosen: Sequence[Disk]) -> None:
        """See :class:`workers.capture.way.Capture`."""
        require_quiet(self.engine.hypervisor, self._monitor, chosen)

    def veto(self, disk: Disk, plan: DiskPlan) -> str:
        """See :class:`workers.capture.way.Capture`."""
        return witness.trouble(self._monitor, plan.evidence) or witness.foreign(
            self._monitor, disk, plan.evidence
        )

    def counts(self, disk: Disk) -> bool:
        """See :class:`workers.capture.way.Capture`."""
        return True

    def stand(self, chosen: Sequence[Disk], plans: Plans) -> None:
        """Nodes, new bitmaps, filters; the guest does not use them yet."""
        for disk in chosen:
            names = self._names(disk)
            if plans[disk.target].sync != "none":
                isolation.add_nbd(self._monitor, names.image, self.targets.image(disk.target))
            isolation.add_nbd(self._monitor, names.scratch, self.targets.scratch(disk.target))
        if bitmaps := self._new_bitmaps(chosen, plans):
            self._monitor.execute("transaction", actions=bitmaps)
        self._unseed(chosen)
        for disk in chosen:
            isolation.add_filter(
                self._monitor, disk, self._names(disk), self.engine.settings.cbw_timeout
            )
        # Again: somebody may have begun since the first look, and from here on cannot.
        require_quiet(self.engine.hypervisor, self._monitor, chosen)

    def take(self, chosen: Sequence[Disk], plans: Plans, freeze: str, speed: int) -> Instant:
        """Attach each guest device to its filter."""

        def swap() -> None:
            for disk in chosen:
                isolation.swap_in(self._monitor, disk, self._names(disk))

        return instant.take(
            self._monitor,
            self.engine.settings,
            freeze=freeze,
            # One disk's swap is an instant in itself.
            stop=len(chosen) > 1,
            swap=swap,
        )

    def start(self, chosen: Sequence[Disk], plans: Plans, speed: int) -> None:
        """Snapshot nodes, and on them the jobs of all disks in one transaction."""
        for disk in chosen:
            isolation.add_snapshot(
                self._monitor, disk, self._names(disk), plans[disk.target].sources
            )
        # Started together, but not `grouped`: there QEMU itself cancels the others when one fails,
        # and waits for them in its main loop; behind a stalled target the guest would stand.
        actions = [
            backup_action(
                self._monitor.capabilities,
                self._names(disk),
                device=self._names(disk).snapshot,
                target=self._names(disk).image,
                sync={"sync": "bitmap", "bitmap": isolation.CHANGED, "bitmap-mode": "never"}
                if plans[disk.target].parent
                else {"sync": plans[disk.target].sync},
                speed=speed,
            )
            for disk in chosen
            if plans[disk.target].sync != "none"
        ]
        if actions:
            self._monitor.execute("transaction", actions=actions)

    def notes(self) -> list[str]:
        """See :class:`workers.capture.way.Capture`."""
        return [f"disk {t}: its bitmap has no witness" for t in self._unwitnessed]

    def moved(self, before: Disk, after: Disk) -> bool:
        """See :class:`workers.capture.way.Capture`."""
        # The filter stays above whatever a snapshot put on top.
        return False

    def monitor(self) -> LibvirtMonitor:
        """See :class:`workers.capture.way.Capture`."""
        return self._monitor

    def check(self) -> None:
        """See :class:`workers.capture.way.Capture`."""

    def close(self) -> None:
        """See :class:`workers.capture.way.Capture`."""
        self._monitor.close()

    def witness(self, disk: Disk) -> int:
        """See :class:`workers.capture.way.Capture`."""
        return witness.marked(disk.virtual_size) if disk.target in self._witnessed else 0

    def _new_bitmaps(self, chosen: Sequence[Disk], plans: Plans) -> list[dict[str, Any]]:
        """The actions that add the new bitmaps, each with its witness."""
        found: list[dict[str, Any]] = []
        for disk in chosen:
            if not plans[disk.target].counts:
                continue
            new, node = self.run.bitmap(disk.target), self._names(disk).seed
            found.append(new_bitmap(disk, new.name))
            if self.run.request.get("bitmap"):
                found.append(new_bitmap(disk, new.since))
            if self._monitor.capabilities.merge == "any node" and witness.seed(
                self._monitor, node, disk
            ):
                self._witnessed.add(disk.target)
                found += witness.actions(disk, new, node)
            else:
                self._unwitnessed.append(disk.target)
        return found

    def _unseed(self, chosen: Sequence[Disk]) -> None:
        for disk in chosen:
            if disk.target in self._witnessed:
                witness.unseed(self._monitor, self._names(disk).seed)

    def _names(self, disk: Disk) -> Names:
        return Names(self.run.tag, disk.target)
