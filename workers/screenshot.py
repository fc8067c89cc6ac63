"""Screenshots as PNG, whatever QEMU and libvirt make of them."""

from __future__ import annotations

import re
import struct
import zlib

__all__ = ["png"]

MAGIC = b"\x89PNG\r\n\x1a\n"
PPM = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s", re.DOTALL)


def png(picture: bytes) -> bytes:
    """A picture as PNG: one already (QEMU 7.1 and later), or a binary PPM.

    :raises ValueError: it is neither.
    """
    if picture.startswith(MAGIC):
        return picture
    header = PPM.match(picture)
    if header is None:
        raise ValueError("neither PNG nor PPM")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(picture)[header.end() :]
    if len(pixels) < width * height * 3:
        raise ValueError("a PPM that was cut off")
    # Each row begins with how it is filtered: not at all.
    rows = b"".join(
        b"\0" + bytes(pixels[row * width * 3 : (row + 1) * width * 3]) for row in range(height)
    )
    # 8 bits per sample, colour type 2: RGB.
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return MAGIC + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND")


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
