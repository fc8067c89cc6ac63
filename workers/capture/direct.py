"""Capture of a running or paused domain by a QEMU that cannot set its guest apart.

The jobs read the disks' own nodes and copy before each guest write *into the target*: while the
target stalls the guest's writes wait, and where it dies they fail. The result says so.

QEMU clears the bitmap that a job succeeded with, long before the point is durable, so none that
counts from a point is ever copied from. From 4.0 on the parent's is merged into one that lives as
long as the job. Before, each point has a *spare* bitmap beside its own, and the job copies from the
parent's spare: used at most once, it is dropped whatever becomes of the backup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from virtvault.errors import NotSupported
from workers import instant, isolation
from workers.bitmap_names import parse
from workers.capture.isolated import Isolated
from workers.capture.way import Plans, backup_action, new_bitmap
from workers.disks import Disk
from workers.instant import Instant
from workers.plan import DiskPlan

__all__ = ["Direct"]


class Direct(Isolated):
    """New bitmaps and jobs of all disks in one transaction, which is the instant."""

    name = "direct"
    isolated = False
    plans_again = False

    def refuse(self, chosen: Sequence[Disk]) -> None:
        """See :class:`workers.capture.way.Capture`."""
        super().refuse(chosen)
        if self.run.request.get("sync") == "none":
            raise NotSupported(
                f"Domain {self.run.domain} runs on a QEMU that cannot export a point in time "
                "without putting its guest at risk (7.1 can).",
                "Restart or migrate the domain onto a newer QEMU, or take a full.",
            )
        if self.run.request.get("bitmap") and self._monitor.capabilities.merge == "none":
            raise NotSupported(
                f"Domain {self.run.domain} runs on {self._version()}, which cannot clear a bitmap "
                "of yours without losing what is written meanwhile (4.0 can).",
                "Leave --bitmap out.",
            )

    def veto(self, disk: Disk, plan: DiskPlan) -> str:
        """Why the changes cannot be copied by this QEMU, or empty."""
        elsewhere = any(node != disk.node for node, _ in plan.sources)
        if elsewhere and self._monitor.capabilities.merge != "any node":
            return f"{self._version()} cannot merge bitmaps of several images (4.1 can)"
        if self._monitor.capabilities.merge == "none":
            parent = parse(plan.sources[0][1])
            assert parent is not None
            bitmaps = disk.layers[0].bitmaps
            ours = {n for n in bitmaps if (p := parse(n)) and p.repository == parent.repository}
            # Any other of this repository is of a backup that was broken off and may have used
            # the spare.
            if ours - {parent.witness} != {parent.name, parent.spare}:
                return "the parent's spare bitmap is gone, or was used by a backup that failed"
            if trouble := bitmaps[parent.spare].trouble:
                return f"the parent's spare bitmap {trouble}"
            # Both have recorded the same since the same moment.
            if bitmaps[parent.spare].count != bitmaps[parent.name].count:
                return "the parent's two bitmaps differ: one was used, or changed by somebody"
            return ""
        return super().veto(disk, plan)

    def stand(self, chosen: Sequence[Disk], plans: Plans) -> None:
        """The targets' nodes, where the copying command takes nodes."""
        if self._monitor.capabilities.copy == "blockdev-backup":
            for disk in chosen:
                names = self._names(disk)
                isolation.add_nbd(self._monitor, names.image, self.targets.image(disk.target))

    def take(self, chosen: Sequence[Disk], plans: Plans, freeze: str, speed: int) -> Instant:
        """Start everything in one transaction: its prepare drains all disks at once."""
        actions = self._new_bitmaps(chosen, plans)
        for disk in chosen:
            if self._monitor.capabilities.merge == "none" and plans[disk.target].counts:
                actions.append(new_bitmap(disk, self.run.bitmap(disk.target).spare))
            actions += self._of_disk(disk, plans, speed)
        taken = instant.take(
            self._monitor,
            self.engine.settings,
            freeze=freeze,
            stop=False,
            swap=lambda: self._monitor.execute("transaction", actions=actions),
        )
        self._unseed(chosen)
        return taken

    def start(self, chosen: Sequence[Disk], plans: Plans, speed: int) -> None:
        """Nothing: the instant started them."""

    def notes(self) -> list[str]:
        """That faults of the backup could reach the guest, and why."""
        return [
            f"not isolated: {self._version()} copies before each guest write into the target, so a "
            "target that stalls or fails is felt by the guest",
            *super().notes(),
        ]

    def moved(self, before: Disk, after: Disk) -> bool:
        """A snapshot came before the transaction: its job reads a layer below the active one."""
        return not after.layers or before.node != after.node

    def _of_disk(self, disk: Disk, plans: Plans, speed: int) -> list[dict[str, Any]]:
        plan, names = plans[disk.target], self._names(disk)
        actions: list[dict[str, Any]] = []
        sync = {"sync": plan.sync}
        if plan.parent and self._monitor.capabilities.merge == "none":
            parent = parse(plan.sources[0][1])
            assert parent is not None
            sync = {"sync": "incremental", "bitmap": parent.spare}
        elif plan.parent:
            # A bitmap of its own to copy from, since QEMU clears the one a job succeeded with.
            # It records from the start: a write that comes between the merge and the job's own
            # start must be copied.
            actions = [
                {
                    "type": "block-dirty-bitmap-add",
                    "data": {"node": disk.node, "name": names.changed},
                },
                {
                    "type": "block-dirty-bitmap-merge",
                    "data": {
                        "node": disk.node,
                        "target": names.changed,
                        "bitmaps": self._named(disk, plan.sources),
                    },
                },
            ]
            sync = {"sync": "incremental", "bitmap": names.changed}
        abilities = self._monitor.capabilities
        by_node = abilities.copy == "blockdev-backup"
        export = self.targets.image(disk.target)
        job = backup_action(
            abilities,
            names,
            device=disk.node,
            target=names.image if by_node else export.url,
            sync=sync,
            speed=speed,
        )
        return [*actions, job]

    def _named(self, disk: Disk, sources: tuple[tuple[str, str], ...]) -> list[Any]:
        if self._monitor.capabilities.merge == "any node":
            return [{"node": node, "name": name} for node, name in sources]
        return [name for _, name in sources]

    def _version(self) -> str:
        as_of = self.engine.settings.qemu_as_of
        major, minor, _ = self._monitor.capabilities.version
        return f"QEMU {as_of or f'{major}.{minor}'}"
