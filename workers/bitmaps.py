"""Dirty bitmaps by hand: list, add, clear and remove, whether the domain runs or is shut off.

virtvault's own and libvirt's are shown and protected: a backup that counts on a bitmap somebody
has cleared would miss changes, and nobody would know.
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from virtvault.errors import DomainBusy, InvalidRequest, ProtectedBitmap, UnknownBitmap
from virtvault.models import BitmapChanges, BitmapInfo, BitmapRequest
from workers.bitmap_changes import Change
from workers.bitmap_names import parse
from workers.bitmap_view import View, image_kind, look
from workers.disks import Disk
from workers.engine import Engine
from workers.journal import HeldElsewhere

__all__ = ["add", "clear", "listing", "remove"]


def listing(engine: Engine, request: BitmapRequest) -> list[BitmapInfo]:
    """The bitmaps whose names match, on every image of the disks' backing chains.

    :raises BadInput: unknown domain or disk.
    """
    view = look(engine, request.domain)
    chosen = view.choose(request.disks)[0] if request.disks else view.disks
    return [
        view.info(disk, layer, bitmap)
        for disk in chosen
        for layer in disk.layers
        for name, bitmap in sorted(layer.bitmaps.items())
        if name == request.name or fnmatch.fnmatchcase(name, request.name)
    ]


def add(engine: Engine, request: BitmapRequest) -> BitmapChanges:
    """Add a recording bitmap to the active image of each disk, to all of them or none.

    :raises BadInput: nothing was touched.
    """
    view = look(engine, request.domain)
    chosen, skipped = view.choose(request.disks)
    changes = []
    for disk in chosen:
        _require_free_name(view, disk, request.name)
        persistent = disk.persistent if request.persistent is None else request.persistent
        _require_storable(view, disk, persistent)
        changes.append(Change("add", disk, request.name, request.granularity, persistent))
    view.apply(changes)
    view = look(engine, request.domain)
    targets = {disk.target for disk in chosen}
    added = [
        view.info(disk, disk.layers[0], disk.layers[0].bitmaps[request.name])
        for disk in view.disks
        if disk.target in targets and request.name in disk.layers[0].bitmaps
    ]
    return BitmapChanges(view.domain, "added", tuple(added), skipped)


def clear(engine: Engine, request: BitmapRequest) -> BitmapChanges:
    """Clear a bitmap on each disk that has it, on all of them or none: it begins anew.

    :raises BadInput: nothing was touched.
    """
    view = look(engine, request.domain)
    found, skipped = _meant(view, request, patterns=False)
    for info in found:
        command = f"virtvault bitmaps remove {_quoted(view.domain, info.name)}"
        if info.owner == "virtvault":
            raise ProtectedBitmap(
                f"Bitmap {info.name} on {info.target} of domain {view.domain} is virtvault's own "
                f"({info.purpose}): once cleared, the next incremental would miss changes and "
                "nobody would know.",
                f"To be rid of it, `{command} --yes`; the next backup of the disk is then a full.",
            )
        if info.state == "inconsistent":
            raise InvalidRequest(
                f"Bitmap {info.name} on {info.target} of domain {view.domain} is inconsistent "
                "(QEMU ended without storing it) and can only be removed.",
                f"`{command}`, then add it again.",
            )
    view.apply([Change("clear", view.disk(info.target), info.name) for info in found])
    return BitmapChanges(view.domain, "cleared", tuple(found), skipped)


def remove(engine: Engine, request: BitmapRequest) -> BitmapChanges:
    """Remove bitmaps, by name or glob pattern, from each disk that has them, all or none.

    :raises BadInput: nothing was touched.
    """
    view = look(engine, request.domain)
    ours = [info for info in _meant(view, request, patterns=True)[0] if info.owner == "virtvault"]
    if not ours:
        return _remove(view, request)
    if not request.include_ours:
        more = f" (and {len(ours) - 1} more)" if len(ours) > 1 else ""
        raise ProtectedBitmap(
            f"Bitmap {ours[0].name} on {ours[0].target} of domain {view.domain}{more} is "
            f"virtvault's own ({ours[0].purpose}): without it the next backup of that disk into "
            "that repository is a full.",
            "If that is what you want, `virtvault bitmaps remove "
            + _quoted(view.domain, request.name, *(f"--disk={t}" for t in request.disks))
            + " --yes`.",
        )
    with _no_backup(engine, view):
        # Looked at again: until the domain was held, a backup may have changed what there is.
        return _remove(look(engine, request.domain), request)


def _remove(view: View, request: BitmapRequest) -> BitmapChanges:
    found, skipped = _meant(view, request, patterns=True)
    view.apply([Change("remove", view.disk(info.target), info.name) for info in found])
    return BitmapChanges(view.domain, "removed", tuple(found), skipped)


def _meant(
    view: View, request: BitmapRequest, *, patterns: bool
) -> tuple[list[BitmapInfo], dict[str, str]]:
    """The bitmaps on active images that a request means: of that very name, or by pattern.

    :raises UnknownBitmap: there is none, or a disk that was asked for has none.
    :raises ProtectedBitmap: one is libvirt's.
    :raises DomainBusy: a block job is using one.
    """
    chosen, skipped = view.choose(request.disks)
    found = []
    for disk in chosen:
        there = disk.layers[0].bitmaps
        # With one of virtvault's goes what stands beside it and is of no use alone.
        beside = [name for name in sorted(there) if _beside(name, request.name)]
        names = [request.name, *beside] if request.name in there else []
        if patterns and not names:
            names = [name for name in sorted(there) if fnmatch.fnmatchcase(name, request.name)]
        if request.disks and not names:
            raise _unknown(view, [disk], request.name)
        found += [view.info(disk, disk.layers[0], there[name]) for name in names]
    if not found:
        raise _unknown(view, chosen, request.name)
    for info in found:
        if info.owner == "libvirt":
            raise _libvirts(view, info)
        if info.state == "busy":
            raise DomainBusy(
                f"Bitmap {info.name} on {info.target} of domain {view.domain} is in use by a "
                "block job.",
                "Wait for it; `virtvault jobs` shows it.",
            )
    return found, skipped


def _beside(name: str, other: str) -> bool:
    """Whether a bitmap is the witness, or the like, of one of virtvault's."""
    ours = parse(name)
    return ours is not None and ours.kind != "" and replace(ours, kind="").name == other


# -- what must not be -----------------------------------------------------------------------------


def _unknown(view: View, disks: Sequence[Disk], name: str) -> UnknownBitmap:
    where = ", ".join(disk.target for disk in disks)
    for layer in (layer for disk in disks for layer in disk.layers[1:]):
        if any(fnmatch.fnmatchcase(each, name) for each in layer.bitmaps):
            return UnknownBitmap(
                f"Domain {view.domain} has no bitmap {name!r} on the active image of {where}; "
                f"backing image {layer.filename} has it.",
                "Bitmaps of backing images record nothing and are left alone.",
            )
    known = sorted({each for disk in disks for each in disk.layers[0].bitmaps})
    return UnknownBitmap(
        f"Domain {view.domain} has no bitmap {name!r} on {where}.",
        f"There is {', '.join(known) or 'none'}.",
    )


def _libvirts(view: View, info: BitmapInfo) -> ProtectedBitmap:
    if info.name in view.owners.checkpoints:
        start = "" if view.running else f"`virsh start {_quoted(view.domain)}`, then "
        delete = f"`virsh checkpoint-delete {_quoted(view.domain, info.name)}`"
        mend = f"{start}{delete} removes it with its checkpoint."
    else:
        mend = f"It goes with the job that `virsh domjobinfo {_quoted(view.domain)}` shows."
    return ProtectedBitmap(
        f"Bitmap {info.name} on {info.target} of domain {view.domain} is libvirt's "
        f"({info.purpose}).",
        mend,
    )


def _require_free_name(view: View, disk: Disk, name: str) -> None:
    """:raises BadInput: a bitmap has it, or it is one of virtvault's or libvirt's names."""
    if owner := view.owners.reserved_for(name, disk.target):
        raise ProtectedBitmap(f"Bitmap name {name!r} is {owner}'s to use.", "Choose another name.")
    if name in disk.layers[0].bitmaps:
        raise InvalidRequest(
            f"Bitmap {name!r} exists already on {disk.target} of domain {view.domain}.",
            f"Choose another name, or `virtvault bitmaps clear {_quoted(view.domain, name)}`.",
        )


def _require_storable(view: View, disk: Disk, persistent: bool) -> None:
    """:raises InvalidRequest: it cannot be persistent, or has to be."""
    if persistent and not disk.persistent:
        raise InvalidRequest(
            f"Disk {disk.target} of domain {view.domain}: {image_kind(disk)} cannot store bitmaps.",
            "Leave --persistent away: the bitmap then lives in QEMU's memory until the domain is "
            "shut off. Or leave the disk out.",
        )
    if not persistent and not view.running:
        raise InvalidRequest(
            f"Domain {view.domain} is shut off: a bitmap that is not persistent lives in QEMU's "
            "memory, and no QEMU runs.",
            "Leave --no-persistent away, or start the domain.",
        )


@contextmanager
def _no_backup(engine: Engine, view: View) -> Iterator[None]:
    """Hold the domain, so that no backup of ours is under way or begins.

    :raises DomainBusy: one is, of a living worker or waiting for the next.
    """

    def busy(task_id: str) -> DomainBusy:
        return DomainBusy(
            f"Domain {view.domain} is being backed up by task {task_id}, which needs virtvault's "
            "bitmaps.",
            f"Wait for it, or stop it with `virtvault cancel {task_id}`.",
        )

    try:
        with engine.journal.hold(view.uuid, "bitmaps-remove"):
            for run in engine.journal.all():
                if run.uuid == view.uuid and run.kind == "backup" and not run.error:
                    raise busy(run.task_id)
            yield
    except HeldElsewhere as held:
        raise busy(held.holder) from held


def _quoted(*words: str) -> str:
    return " ".join(shlex.quote(word) for word in words)
