"""What a backup asks of each way to capture disks, and the block jobs they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from workers.capabilities import Capabilities
from workers.disks import Disk
from workers.instant import Instant
from workers.isolation import Names
from workers.monitor import Monitor
from workers.plan import DiskPlan
from workers.witness import GRANULARITY

__all__ = ["Capture", "Plans", "backup_action", "new_bitmap"]

Plans = Mapping[str, DiskPlan]


class Capture(Protocol):
    """One way; each method is one step of the story in :mod:`workers.backup`."""

    # As the journal and the point's notes know it.
    name: str
    # Whether a fault of the backup can reach the guest.
    isolated: bool
    # Whether what an incremental copies is told to QEMU after the instant.
    plans_again: bool
    # Of the domain now: running, paused or shut off.
    state: str

    def xml(self) -> str:
        """The domain's XML as it is now."""

    def disks(self) -> list[Disk]:
        """The domain's disks as they are now."""

    def refuse(self, chosen: Sequence[Disk]) -> None:
        """Raise where these disks must not or cannot be captured now; nothing was touched yet."""

    def veto(self, disk: Disk, plan: DiskPlan) -> str:
        """Why this incremental cannot be made this way, or empty."""

    def counts(self, disk: Disk) -> bool:
        """Whether a bitmap that counts from the point can be made on this disk."""

    def witness(self, disk: Disk) -> int:
        """The bytes that the witness of this disk's new bitmap counts, 0 where it has none."""

    def stand(self, chosen: Sequence[Disk], plans: Plans) -> None:
        """Make everything that can be made before the instant."""

    def take(self, chosen: Sequence[Disk], plans: Plans, freeze: str, speed: int) -> Instant:
        """The instant. New bitmaps record from before it."""

    def moved(self, before: Disk, after: Disk) -> bool:
        """Whether what the instant was taken of is not the disk's active layer any more."""

    def start(self, chosen: Sequence[Disk], plans: Plans, speed: int) -> None:
        """Start the jobs, where the instant did not."""

    def monitor(self) -> Monitor:
        """Where the jobs run, for as long as this is not closed."""

    def notes(self) -> list[str]:
        """What the point's record should say of this way."""

    def check(self) -> None:
        """Raise where what is being copied is not the instant's content any more."""

    def close(self) -> None:
        """Let go of the monitors; what was made stays."""


def new_bitmap(disk: Disk, name: str) -> dict[str, Any]:
    """The transaction's action that adds one of the point's bitmaps."""
    return {
        "type": "block-dirty-bitmap-add",
        "data": {
            "node": disk.node,
            "name": name,
            "persistent": disk.persistent,
            "granularity": GRANULARITY,
        },
    }


def backup_action(
    abilities: Capabilities,
    names: Names,
    *,
    device: str,
    target: str,
    sync: Mapping[str, str],
    speed: int,
) -> dict[str, Any]:
    """One disk's job as a transaction's action; its id is the same for every worker."""
    data: dict[str, Any] = {
        "job-id": names.job,
        "device": device,
        "target": target,
        "speed": speed,
        "auto-dismiss": False,
        **sync,
    }
    if abilities.copy == "drive-backup":
        data |= {"mode": "existing", "format": "raw"}
    if abilities.x_perf:
        # Larger and more parallel requests than the default: half the time.
        data["x-perf"] = {"max-workers": 16, "max-chunk": 4 * 2**20}
    return {"type": abilities.copy, "data": data}
