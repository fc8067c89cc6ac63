"""Digests of what each image of the repository holds, by which it is proven later.

A list has a digest for each MiB of the disk that the image itself has anything of: of which of its
64 KiB granules are there, which are zeroes, and of the bytes of the others. It is computed from
what is read back from the repository as a point is committed, and it is of the image's content as
QEMU reads it, not of the file: so a merge that changes a few MiB of a large full needs no more than
these read again, and what was not touched keeps the digest from when it was written.

In an image with nothing below it (a full) what is not there reads as zeroes and is the same as
zeroes; in others it is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

from blake3 import blake3

from virtvault.errors import RepositoryUnusable
from virtvault.models import PointDisk
from workers.journal import durable_write
from workers.nbd_reader import Extent, extents, layers, open_reader

__all__ = ["Damage", "check", "compute", "file_name", "load", "store", "touched"]

GRANULE = 65536
CHUNK = 2**20
ABSENT, ZERO, DATA = b"-", b"Z", b"D"
ZEROES = memoryview(bytes(GRANULE))
# Bytes of a digest in a list: 16 make a coincidence as unlikely as 128 bits do.
LENGTH = 16

Digests = dict[int, str]
# Bytes read so far, of how many; may raise to stop.
Sample = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """Where an image is not what it was: ``chunks`` are numbers of MiB of the disk."""

    detail: str
    chunks: tuple[int, ...] = ()


def compute(
    images: Sequence[Path],
    runtime_dir: str,
    *,
    whole: bool,
    chunks: Iterable[int] | None = None,
    sample: Sample = lambda _done, _total: None,
) -> Digests:
    """The digests of one image, or of what several on top of each other make together.

    :param images: the topmost first; nothing below the last is read.
    :param whole: whether nothing is below the last.
    :param chunks: only these, all where that is None.
    :raises RepositoryUnusable: something cannot be read.
    """
    wanted = None if chunks is None else set(chunks)
    parts = [part for part in extents(images) if not (part[2] and whole)]
    total = sum(length for _, length, zero in parts if not zero) if wanted is None else 0
    found: Digests = {}
    with open_reader(layers(images), runtime_dir, str(images[0])) as reader:
        # The marks of a few chunks at a time: a disk has millions.
        chosen = (one for one in _marks(parts) if wanted is None or one[0] in wanted)
        ahead, marked = tee(chosen)
        stream = reader.read(
            one for chunk, marks in ahead for one in _ranges(chunk, marks, reader.size)
        )
        done = 0
        sample(done, total)
        for chunk, marks in marked:
            ranges = _ranges(chunk, marks, reader.size)
            content = b"".join(next(stream) for _ in ranges)
            if digest := _digest(marks, content, whole):
                found[chunk] = sys.intern(digest)  # those of zeroes alone are all the same
            done += len(content)
            sample(done, max(done, total))
    return found


def touched(images: Sequence[Path]) -> set[int]:
    """The chunks that any of the images has something of."""
    return {
        chunk
        for start, length, _ in extents(images)
        for chunk in range(start // CHUNK, -(-(start + length) // CHUNK))
    }


def store(directory: Path, target: str, digests: Mapping[int, str]) -> str:
    """Write a disk's list durably; gives the list's own digest, by which it is named.

    :raises RepositoryUnusable: it cannot be written.
    """
    content = {
        "algorithm": "blake3",
        "chunk": CHUNK,
        "granule": GRANULE,
        "digests": {str(chunk): digests[chunk] for chunk in sorted(digests)},
    }
    text = json.dumps(content, separators=(",", ":")) + "\n"
    digest = blake3(text.encode()).hexdigest()
    try:
        durable_write(directory / file_name(target, digest), text)
    except OSError as error:
        raise RepositoryUnusable(
            f"{directory / file_name(target, digest)} cannot be written: {error.strerror}.",
            "Make room in the repository, or mend its permissions.",
        ) from error
    return digest


def load(directory: Path, target: str, digest: str) -> Digests:
    """A disk's list.

    :raises RepositoryUnusable: it is not there, or not what the manifest says.
    """
    path = directory / file_name(target, digest)
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise _unusable(path, str(error)) from error
    if blake3(text.encode()).hexdigest() != digest:
        raise _unusable(path, "it was altered, or written only in part")
    content = json.loads(text)
    if (content["algorithm"], content["chunk"], content["granule"]) != ("blake3", CHUNK, GRANULE):
        raise _unusable(path, "it was made by a later version; upgrade virtvault")
    return {int(chunk): value for chunk, value in content["digests"].items()}


def check(
    directory: Path,
    disk: PointDisk,
    runtime_dir: str,
    sample: Sample = lambda _done, _total: None,
) -> Damage | None:
    """Read a point's own image of a disk back and compare it with its list; None where it is whole.

    Only for disks that have a list (``disk.digests``). What cannot be read is damage, too.

    :param directory: the point's.
    """
    try:
        expected = load(directory, disk.target, disk.digests)
        found = compute(
            [directory / disk.file], runtime_dir, whole=disk.sync == "full", sample=sample
        )
    except RepositoryUnusable as error:
        return Damage(error.message)
    if not (wrong := differing(expected, found)):
        return None
    return Damage(
        f"{disk.file} is not what it was: {len(wrong)} of {len(expected | found)} MiB differ, the "
        f"first at {wrong[0]} MiB of the disk.",
        tuple(wrong),
    )


def differing(expected: Mapping[int, str], found: Mapping[int, str]) -> list[int]:
    """The chunks that are in one list and not the same in the other."""
    return sorted(
        chunk for chunk in expected.keys() | found.keys() if expected.get(chunk) != found.get(chunk)
    )


def file_name(target: str, digest: str) -> str:
    """A list's file name: by its content, so that an old and a new one stand beside each other."""
    return f"{target}.{digest[:8]}.digests"


def _marks(parts: Iterable[Extent]) -> Iterator[tuple[int, bytearray]]:
    """Chunk by chunk, in their order, what each of its granules is."""
    marks, current = bytearray(), -1
    for start, length, zero in parts:
        for granule in range(start // GRANULE, -(-(start + length) // GRANULE)):
            chunk, place = divmod(granule, CHUNK // GRANULE)
            if chunk != current:
                if current >= 0:
                    yield current, marks
                marks, current = bytearray(ABSENT * (CHUNK // GRANULE)), chunk
            # Of a granule that is data in part all is read.
            if not zero or marks[place] != DATA[0]:
                marks[place : place + 1] = ZERO if zero else DATA
    if current >= 0:
        yield current, marks


def _ranges(chunk: int, marks: bytearray, size: int) -> list[tuple[int, int]]:
    """Offset and length of what is to be read of a chunk, neighbours as one range."""
    found: list[tuple[int, int]] = []
    for place, mark in enumerate(marks):
        if mark != DATA[0]:
            continue
        offset = chunk * CHUNK + place * GRANULE
        length = min(GRANULE, size - offset)
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return found


def _digest(marks: bytearray, content: bytes, whole: bool) -> str:
    """One chunk's digest; empty where it is not told from what is not there."""
    found, view, at = bytearray(marks), memoryview(content), 0
    digest = blake3()
    for place, mark in enumerate(marks):
        if mark != DATA[0]:
            continue
        part = view[at : at + GRANULE]
        at += GRANULE
        if part == ZEROES[: len(part)]:
            found[place : place + 1] = ABSENT if whole else ZERO
        else:
            digest.update(part)
    if found.count(ABSENT) == len(found):
        return ""
    digest.update(found)
    return digest.hexdigest(length=LENGTH)


def _unusable(path: Path, why: str) -> RepositoryUnusable:
    return RepositoryUnusable(
        f"The digests {path} cannot be used: {why}.",
        "Nothing proves this image any more; restore the file.",
    )
