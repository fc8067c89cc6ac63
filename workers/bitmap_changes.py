"""Changes to dirty bitmaps: in a running QEMU, or in the images of a domain that is shut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from virtvault.errors import MonitorError, VirtvaultError, WorkFailed
from workers.disks import Disk
from workers.monitor import Monitor, limited
from workers.offline import change_bitmaps

__all__ = ["Change", "in_images", "in_qemu"]


@dataclass(frozen=True)
class Change:
    """One change to one bitmap on the active image of a disk.

    ``action`` is ``add``, ``clear`` or ``remove``; ``granularity`` bytes, 0 for QEMU's default.
    """

    action: str
    disk: Disk
    name: str
    granularity: int = 0
    persistent: bool = True


def in_qemu(monitor: Monitor, changes: Sequence[Change]) -> None:
    """Make all changes or none, in one QMP transaction.

    :raises MonitorError: QEMU refused one; nothing was changed.
    """
    actions = [
        {"type": f"block-dirty-bitmap-{each.action}", "data": _arguments(each)} for each in changes
    ]
    try:
        if len(changes) == 1:
            # Without a transaction: before QEMU 4.2 none takes a removal.
            monitor.execute(f"block-dirty-bitmap-{changes[0].action}", **_arguments(changes[0]))
        else:
            monitor.execute("transaction", actions=actions)
    except MonitorError as error:
        raise MonitorError(
            error.message,
            "Nothing was changed; see `virtvault bitmaps list`. A QEMU before 4.2 removes from "
            "one disk at a time (--disk).",
        ) from error


def in_images(changes: Sequence[Change], seconds: float) -> None:
    """Make the changes image by image, each within ``seconds``.

    What an ``add`` has done is taken back where a later image refuses; what was cleared or removed
    cannot be, and is named.

    :raises WorkFailed: an image is in use or cannot be changed.
    :raises NotReachable: its storage does not answer.
    """
    done: list[Change] = []
    for each in changes:
        try:
            _in_image(each, seconds)
        except VirtvaultError as error:
            if standing := [d.disk.target for d in done if not _taken_back(d, seconds)]:
                raise WorkFailed(
                    f"{error.message} Before that it was done on {', '.join(standing)}.", error.mend
                ) from error
            raise
        done.append(each)


def _in_image(change: Change, seconds: float) -> None:
    image = change.disk.layers[0].filename
    options = [f"--{change.action}"]
    if change.granularity:
        options += ["-g", str(change.granularity)]
    # Waited for and never killed: an image that is open for writing has all its bitmaps marked in
    # use, and killed there, every one of them would be inconsistent.
    limited(
        lambda: change_bitmaps(image, *options, change.name), seconds, f"qemu-img bitmap on {image}"
    )


def _taken_back(change: Change, seconds: float) -> bool:
    if change.action != "add":
        return False
    try:
        _in_image(replace(change, action="remove", granularity=0), seconds)
    except VirtvaultError:
        return False
    return True


def _arguments(change: Change) -> dict[str, object]:
    arguments: dict[str, object] = {"node": change.disk.node, "name": change.name}
    if change.action == "add":
        arguments["persistent"] = change.persistent
        if change.granularity:
            arguments["granularity"] = change.granularity
    return arguments
