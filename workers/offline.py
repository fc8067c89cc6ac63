"""The images of a domain that is shut off: what they hold, their bitmaps, whether they changed.

Formats are those that the domain's XML and the images' own headers name; none is ever probed, since
what lies in a raw image is the guest's to choose.
"""

from __future__ import annotations

import json
import stat
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from virtvault.errors import WorkFailed
from workers.disks import Bitmap, Disk, Layer, elements, why_left_out
from workers.monitor import Monitor

__all__ = [
    "allocated",
    "change_bitmaps",
    "changed",
    "discover",
    "edit",
    "is_block_device",
    "open_read_only",
    "witness",
    "write",
]


# Bytes; the granularity of our bitmaps and the usual cluster of qcow2.
GRANULE = 65536


# What QEMU says of an image that another process has open.
LOCKED = 'Failed to get "'


def discover(xml: str, tag: str = "") -> list[Disk]:
    """All disks of a shut-off domain; nodes get the names they will have in a run's daemon.

    A disk that should be backed up and cannot be read has a ``fault``.
    """
    return [_disk(element, tag) for element in elements(xml)]


def open_read_only(monitor: Monitor, layer: Layer, below: str | None) -> None:
    """Open one image without a lock: whoever wants to write to it can."""
    backing = {} if layer.driver == "raw" else {"backing": below}
    monitor.execute(
        "blockdev-add",
        driver=layer.driver,
        node_name=layer.node,
        read_only=True,
        force_share=True,
        file={
            "driver": "host_device" if is_block_device(layer.filename) else "file",
            "filename": layer.filename,
            "read-only": True,
        },
        **backing,
    )


def edit(disk: Disk, seed: str, image: str, actions: Sequence[Mapping[str, Any]]) -> None:
    """Change the bitmaps of a disk's active image, with one opening of some milliseconds.

    By a storage daemon that is told everything at once, the end too: a worker that is killed here
    leaves nobody with the image open, in whose way the domain could not be started.

    :param seed: the node that ``actions`` merge from, made of the qcow2 ``image``.
    :raises WorkFailed: it was refused, or somebody else has the image open.
    """
    own = {
        "driver": disk.format,
        "node-name": disk.node,
        "file": {
            "driver": "host_device" if is_block_device(disk.source) else "file",
            "filename": disk.source,
        },
        "backing": None,
    }
    marks = {
        "driver": "qcow2",
        "node-name": seed,
        "read-only": True,
        "file": {"driver": "file", "filename": image, "read-only": True},
    }
    script = (
        {"execute": "qmp_capabilities"},
        {"execute": "blockdev-add", "arguments": marks},
        {"execute": "blockdev-add", "arguments": own},
        {"execute": "transaction", "arguments": {"actions": list(actions)}},
        {"execute": "blockdev-del", "arguments": {"node-name": disk.node}},
        {"execute": "quit"},
    )
    done = subprocess.run(
        ["qemu-storage-daemon", "--chardev", "stdio,id=script", "--monitor", "chardev=script"],
        input="".join(json.dumps(command) + "\n" for command in script),
        capture_output=True,
        text=True,
        check=False,
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [reply["error"]["desc"] for reply in replies if "error" in reply]
    if any(LOCKED in error for error in errors):
        raise _in_use(disk.source)
    if errors or sum("return" in reply for reply in replies) != len(script):
        raise WorkFailed(
            f"The bitmaps of {disk.source} could not be changed: "
            f"{errors[0] if errors else done.stderr.strip()}.",
            "See whether the image is sound (qemu-img check).",
        )


def _in_use(image: str) -> WorkFailed:
    return WorkFailed(
        f"{image} is in use: its domain is just being started, or another program has it open.",
        "Try again; while the domain runs it is backed up live.",
    )


def change_bitmaps(image: str, *operations: str) -> None:
    """Run ``qemu-img bitmap`` on a qcow2 image: ``("--add", NAME)``, ``("--remove", NAME)`` …

    :raises WorkFailed: it refused, or somebody has the image open.
    """
    *options, name = operations
    done = subprocess.run(
        ["qemu-img", "bitmap", *options, "-f", "qcow2", "--", image, name],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    said = done.stderr.strip().removeprefix("qemu-img: ")
    if LOCKED in said:
        raise _in_use(image)
    raise WorkFailed(f"Bitmap {name} on {image}: {said}.", "See whether the image is sound.")


def allocated(image: str) -> int:
    """The bytes that a qcow2 image itself has, not its backing, rounded out to :data:`GRANULE`.

    :raises WorkFailed: it cannot be read.
    """
    # Without what it backs on, whose format its header may not name.
    alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": image}}
    done = subprocess.run(
        ["qemu-img", "map", "-U", "--output=json", f"json:{json.dumps(alone)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorkFailed(
            f"{done.stderr.strip().removeprefix('qemu-img: ')}.", "See whether the image is sound."
        )
    granules: set[int] = set()
    for part in json.loads(done.stdout):
        if part["depth"] == 0 and part.get("present", True):
            first, end = part["start"], part["start"] + part["length"]
            granules.update(range(first // GRANULE, -(-end // GRANULE)))
    return len(granules) * GRANULE


def write(image: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Write zeroes to (offset, length) ranges of a qcow2 image, as its bitmaps see them.

    :raises WorkFailed: it could not be done.
    """
    commands = [f"-cwrite -q -z {offset} {length}" for offset, length in ranges]
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", *commands, image], capture_output=True, text=True, check=False
    )
    if done.returncode or "failed" in done.stdout:
        raise WorkFailed(
            f"{image} cannot be written: {(done.stderr or done.stdout).strip()}.",
            "See to the room in scratch_dir.",
        )


def witness(disks: Iterable[Disk]) -> dict[str, list[int]]:
    """Length and time of last change of every image, by which a write to it is known later."""
    return {layer.filename: _state(layer.filename) for disk in disks for layer in disk.layers}


def changed(seen: Mapping[str, Sequence[int]]) -> list[str]:
    """The images that are not as :func:`witness` saw them. Block devices are never told."""
    return [path for path, state in seen.items() if _state(path) != list(state)]


def is_block_device(path: str) -> bool:
    """Whether it is one: it tells neither length nor time of last change."""
    try:
        return stat.S_ISBLK(Path(path).stat().st_mode)
    except OSError:
        return False


def _state(path: str) -> list[int]:
    try:
        entry = Path(path).stat()
    except OSError:
        return [-1, -1]
    if stat.S_ISBLK(entry.st_mode):
        return [0, 0]
    return [entry.st_size, entry.st_mtime_ns]


def _disk(element: ElementTree.Element, tag: str) -> Disk:
    target, source = element.find("target"), element.find("source")
    driver = element.find("driver")
    assert target is not None  # libvirt writes it for every disk
    name = target.get("dev", "")
    disk = Disk(
        target=name,
        bus=target.get("bus", ""),
        device=element.get("device", "disk"),
        qom_path="",
        source="",
        format=driver.get("type", "raw") if driver is not None else "raw",
        virtual_size=0,
        shared=element.find("shareable") is not None,
    )
    path = ""
    if source is not None:
        path = source.get("file") or source.get("dev") or ""
    if skip := why_left_out(element, disk):
        return replace(disk, skip=skip, source=path)
    if source is None:
        return replace(disk, skip="no image in it")
    if not path:
        kind = element.get("type", "")
        return replace(
            disk, fault=f"a {kind} disk can be read only through the QEMU of the running domain"
        )
    if source.find("slices") is not None:
        return replace(disk, source=path, fault="it is a slice of its file")
    layers: list[Layer] = []
    try:
        infos = _chain(path, disk.format)
        _require_same_chain(element, infos)
    except WorkFailed as error:
        return replace(disk, source=path, fault=error.message.rstrip("."))
    for number, info in enumerate(infos):
        layers.append(
            Layer(
                node=f"vvo-{tag}-{name}-{number}",
                filename=info["filename"],
                driver=info["format"],
                bitmaps=_bitmaps(info),
            )
        )
    return replace(
        disk,
        source=path,
        virtual_size=infos[0]["virtual-size"],
        layers=tuple(layers),
        compat=_specific(infos[0]).get("compat", ""),
    )


def _chain(path: str, format_: str) -> list[dict[str, Any]]:
    """``qemu-img info`` of an image and all below it.

    :raises WorkFailed: one cannot be read, or is named without its format.
    """
    found: list[dict[str, Any]] = []
    while path:
        done = subprocess.run(
            ["qemu-img", "info", "-U", "--output=json", "-f", format_, path],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WorkFailed(f"{done.stderr.strip().removeprefix('qemu-img: ')}.")
        info = json.loads(done.stdout)
        found.append(info)
        below = info.get("full-backing-filename", "")
        if below and "backing-filename-format" not in info:
            raise WorkFailed(
                f"{path} names its backing file {below} without a format, and probing it would "
                "trust what the guest wrote (`qemu-img rebase -u -F FORMAT` names it)."
            )
        if below in (one["filename"] for one in found):
            raise WorkFailed(f"{path} is backed by itself.")
        path, format_ = below, info.get("backing-filename-format", "")
    return found


def _require_same_chain(element: ElementTree.Element, infos: Sequence[Mapping[str, Any]]) -> None:
    """See that the XML, where it says what lies below, says what the images' headers do.

    QEMU goes by the XML when libvirt starts it.

    :raises WorkFailed: it does not.
    """
    told = element.find("backingStore")
    if told is None:
        return
    for info in (*infos[1:], None):
        named, format_ = _named(told)
        if info is None and named is None:
            return
        if info is None or named is None or not _same(named, format_, info):
            header = f"{info['filename']} ({info['format']})" if info else "nothing"
            raise WorkFailed(
                f"its XML has {f'{named} ({format_})' if named else 'nothing'} where the header of "
                f"the image above has {header} as backing image."
            )
        below = told.find("backingStore")
        if below is None:
            return  # from here on QEMU goes by the headers
        told = below


def _named(told: ElementTree.Element) -> tuple[str | None, str]:
    source, format_ = told.find("source"), told.find("format")
    if source is None:
        return None, ""
    kind = format_.get("type", "raw") if format_ is not None else "raw"
    return source.get("file") or source.get("dev") or "another host's image", kind


def _same(named: str, format_: str, info: Mapping[str, Any]) -> bool:
    try:
        return format_ == info["format"] and Path(named).samefile(info["filename"])
    except OSError:
        return False


def _bitmaps(info: Mapping[str, Any]) -> dict[str, Bitmap]:
    return {
        entry["name"]: Bitmap(
            name=entry["name"],
            recording="auto" in entry["flags"],
            busy=False,
            persistent=True,
            inconsistent="in-use" in entry["flags"],
            granularity=entry["granularity"],
        )
        for entry in _specific(info).get("bitmaps", ())
    }


def _specific(info: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = info.get("format-specific", {}).get("data", {})
    return data
