"""Capture of a domain that is shut off: its images, read by a qemu-storage-daemon.

The images are opened read-only and without a lock, so the domain can be started at any time; then
the point is failed, never the start. Only adding and removing a bitmap opens an image for writing,
for some milliseconds, in which a start of the domain would find it locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtvault.errors import DomainStarted, NotSupported
from workers import isolation, offline, witness
from workers.bitmap_names import parse
from workers.capture.way import Plans, backup_action, new_bitmap
from workers.disks import Disk
from workers.engine import Engine, now
from workers.hypervisor import StartWatch
from workers.instant import Instant
from workers.isolation import Names
from workers.journal import Run
from workers.plan import DiskPlan
from workers.storage_daemon import StorageDaemon, StorageDaemonMonitor
from workers.targets import Targets

__all__ = ["Offline", "daemon_of"]


def _removal(disk: Disk, name: str) -> dict[str, Any]:
    return {"type": "block-dirty-bitmap-remove", "data": {"node": disk.node, "name": name}}


def daemon_of(engine: Engine, run: Run) -> StorageDaemon:
    """The storage daemon of a run on a domain that is shut off, running or not."""
    return StorageDaemon(Path(engine.settings.runtime_dir, f"b-{run.tag}"))


class Offline:
    """The images of a domain that does not run."""

    name = "offline"
    isolated = True
    plans_again = False
    state = "shut off"

    def __init__(self, engine: Engine, run: Run, targets: Targets) -> None:
        self.engine = engine
        self.run = run
        self.targets = targets
        self._daemon = daemon_of(engine, run)
        self._monitor: StorageDaemonMonitor | None = None
        self._watch: StartWatch | None = None
        self._seen: dict[str, list[int]] = {}

    def xml(self) -> str:
        """The XML the domain will be started with."""
        return self.engine.hypervisor.inactive_xml(self.run.uuid)

    def disks(self) -> list[Disk]:
        """See :class:`workers.capture.way.Capture`."""
        return offline.discover(self.xml(), self.run.tag)

    def refuse(self, chosen: Sequence[Disk]) -> None:
        """See :class:`workers.capture.way.Capture`."""
        if self.run.request.get("sync") == "none":
            raise NotSupported(
                f"Domain {self.run.domain} is shut off: nothing writes to its disks, so there is "
                "no point in time to hold.",
                "Read its images directly (qemu-nbd --read-only), or take a full.",
            )
        for disk in chosen:
            if disk.fault:
                raise NotSupported(
                    f"Disk {disk.target} of domain {self.run.domain}, which is shut off, cannot be "
                    f"backed up: {disk.fault}.",
                    "Mend that, back it up while it runs, or name the other disks with --disk.",
                )

    def veto(self, disk: Disk, plan: DiskPlan) -> str:
        """See :class:`workers.capture.way.Capture`."""
        if plan.evidence is None:
            return ""
        self._open(disk)
        try:
            return witness.trouble(self.monitor(), plan.evidence) or witness.foreign(
                self.monitor(), disk, plan.evidence
            )
        finally:
            for layer in disk.layers:
                isolation.remove_node(self.monitor(), layer.node)

    def counts(self, disk: Disk) -> bool:
        """Where no QEMU runs only an image can hold a bitmap."""
        return disk.persistent

    def stand(self, chosen: Sequence[Disk], plans: Plans) -> None:
        """New bitmaps into the images; then the images and targets opened in the daemon.

        :raises DomainStarted: it was started meanwhile.
        """
        self._watch = self.engine.hypervisor.watch_start(self.run.uuid)
        for disk in chosen:
            if plans[disk.target].counts:
                self._mark(disk, plans[disk.target])
        # Before the images are opened: what the daemon has read of them must still be so later.
        self._seen = offline.witness(chosen)
        self.check()
        for disk in chosen:
            self._open(disk)
            names = Names(self.run.tag, disk.target)
            isolation.add_nbd(self.monitor(), names.image, self.targets.image(disk.target))

    def witness(self, disk: Disk) -> int:
        """See :class:`workers.capture.way.Capture`."""
        return witness.marked(disk.virtual_size) if disk.persistent else 0

    def take(self, chosen: Sequence[Disk], plans: Plans, freeze: str, speed: int) -> Instant:
        """Nobody writes: any moment is the instant, for as long as that is so."""
        return Instant(now(), False, 0.0, 0.0)

    def start(self, chosen: Sequence[Disk], plans: Plans, speed: int) -> None:
        """All jobs in one transaction."""
        monitor = self.monitor()
        self.check()
        actions = []
        for disk in chosen:
            plan, names = plans[disk.target], Names(self.run.tag, disk.target)
            sync = {"sync": plan.sync}
            if plan.parent:
                monitor.execute("block-dirty-bitmap-add", node=disk.node, name=names.changed)
                monitor.execute(
                    "block-dirty-bitmap-merge",
                    node=disk.node,
                    target=names.changed,
                    bitmaps=[{"node": node, "name": name} for node, name in plan.sources],
                )
                sync = {"sync": "bitmap", "bitmap": names.changed, "bitmap-mode": "never"}
            actions.append(
                backup_action(
                    monitor.capabilities,
                    names,
                    device=disk.node,
                    target=names.image,
                    sync=sync,
                    speed=speed,
                )
            )
        self.run.draft["witness"] = self._seen
        self.check()
        monitor.execute("transaction", actions=actions)

    def notes(self) -> list[str]:
        """See :class:`workers.capture.way.Capture`."""
        return []

    def moved(self, before: Disk, after: Disk) -> bool:
        """See :class:`workers.capture.way.Capture`."""
        return [layer.filename for layer in before.layers] != [
            layer.filename for layer in after.layers
        ]

    def monitor(self) -> StorageDaemonMonitor:
        """See :class:`workers.capture.way.Capture`."""
        if self._monitor is None:
            if not self._daemon.alive() and not self.run.draft:
                self._daemon.start()
            self._monitor = self._daemon.monitor(self.engine.settings.qmp_timeout)
        return self._monitor

    def check(self) -> None:
        """See that nobody has written to the images since the instant.

        :raises DomainStarted: the domain runs, or did, or another program wrote to an image.
        """
        if self.engine.hypervisor.is_active(self.run.uuid):
            raise DomainStarted(
                f"Domain {self.run.domain} was started while it was being backed up.",
                "Back it up again: its bitmaps have kept everything.",
            )
        seen = self.run.draft.get("witness", self._seen)
        for changed in offline.changed(seen):
            raise DomainStarted(
                f"{changed} was written to while it was being backed up: domain "
                f"{self.run.domain} ran in between, or another program has the image open.",
                "Back it up again.",
            )
        # A block device does not tell that it was written to. Where we have not watched all the
        # time (the worker was restarted, libvirtd was) it cannot be known.
        if any(map(offline.is_block_device, seen)) and (
            self._watch is None or self._watch.perhaps()
        ):
            raise DomainStarted(
                f"Whether domain {self.run.domain} was started while it was being backed up is "
                "not known.",
                "Back it up again.",
            )

    def _mark(self, disk: Disk, plan: DiskPlan) -> None:
        """Put the new bitmaps into an image and take older ones out."""
        seed = Names(self.run.tag, disk.target).seed
        new = self.run.bitmap(disk.target)
        actions = [_removal(disk, name) for name in self._older(disk, plan)]
        actions.append(new_bitmap(disk, new.name))
        if self.run.request.get("bitmap"):
            actions.append(new_bitmap(disk, new.since))
        actions += witness.actions(disk, new, seed)
        offline.edit(disk, seed, witness.seed_image(disk, self.targets.local()), actions)

    def _older(self, disk: Disk, plan: DiskPlan) -> list[str]:
        """Our bitmaps of this repository that no later point can count from any more."""
        there = {
            name: ours
            for name in disk.layers[0].bitmaps
            if (ours := parse(name)) and ours.repository == self.run.repository_id
        }
        kept = [plan.parent]
        if not plan.parent:
            # A full may fail: what an incremental could count from stays, and is among the last.
            kept = sorted({ours.point for ours in there.values()})[-3:]
        return [name for name, ours in there.items() if ours.point not in kept]

    def _open(self, disk: Disk) -> None:
        """Open a disk's images, the lowest first."""
        below: str | None = None
        for layer in reversed(disk.layers):
            offline.open_read_only(self.monitor(), layer, below)
            below = layer.node

    def close(self) -> None:
        """See :class:`workers.capture.way.Capture`."""
        if self._watch is not None:
            self._watch.close()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
