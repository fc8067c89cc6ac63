"""Reading bytes of an image as QEMU understands it: a client of a read-only ``qemu-nbd``.

The part of the protocol that is needed (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/
proto.md): fixed newstyle negotiation, NBD_OPT_GO, NBD_CMD_READ with simple replies.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtvault.errors import RepositoryUnusable

__all__ = ["Extent", "Reader", "extents", "layers", "open_reader"]

OPTION, REPLY = 0x49484156454F5054, 0x0003E889045565A9
REQUEST, SIMPLE = 0x25609513, 0x67446698
GO, ACK, INFO = 7, 1, 3
# Requests sent before the first answer is awaited.
WINDOW = 8
# Seconds a single answer may take.
PATIENCE = 120.0

# Offset, length, and whether it is all zeroes: what an image has itself.
Extent = tuple[int, int, bool]


def layers(images: Sequence[Path]) -> dict[str, Any]:
    """Images on top of each other as a block node, the first on top, nothing below the last."""
    below: dict[str, Any] | None = None
    for image in reversed(images):
        below = {
            "driver": "qcow2",
            "read-only": True,
            "force-share": True,
            "file": {"driver": "file", "filename": str(image), "read-only": True},
            "backing": below,
        }
    assert below is not None
    return below


def extents(images: Sequence[Path]) -> list[Extent]:
    """What the images have themselves, in order of offset; no image below them is looked at.

    :raises RepositoryUnusable: one cannot be read.
    """
    node = {**layers(images)}
    # The tool has an option of its own for it, which does not go together with the node's.
    _strip(node, "force-share")
    done = subprocess.run(
        ["qemu-img", "map", "-U", "--output=json", f"json:{json.dumps(node)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RepositoryUnusable(
            f"{images[0]} cannot be read: {done.stderr.strip().removeprefix('qemu-img: ')}.",
            "See to the repository's storage, or use a point of another chain.",
        )
    return [
        (part["start"], part["length"], not part["data"])
        for part in json.loads(done.stdout)
        if part.get("present", True)
    ]


class Reader:
    """One connection to an export."""

    def __init__(self, connection: socket.socket, what: str) -> None:
        self._connection = connection
        self._what = what
        self.size = self._negotiate()

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytearray]:
        """The bytes of (offset, length) ranges, in their order; asks a little ahead.

        :raises RepositoryUnusable: some cannot be read.
        """
        source = iter(ranges)
        asked: dict[int, tuple[int, int]] = {}
        answers: dict[int, bytearray] = {}
        sent = given = 0
        while True:
            while len(asked) < WINDOW and (wanted := next(source, None)) is not None:
                self._send(struct.pack(">IHHQQI", REQUEST, 0, 0, sent, *wanted))
                asked[sent] = wanted
                sent += 1
            if given == sent:
                return
            while given not in answers:
                magic, error, handle = struct.unpack(">IIQ", self._receive(16))
                if magic != SIMPLE or handle not in asked or handle in answers:
                    raise self._unusable("qemu-nbd answers out of protocol")
                offset, length = asked[handle]
                if error:
                    raise self._unusable(
                        f"{length} bytes at {offset} cannot be read (error {error})"
                    )
                answers[handle] = self._receive(length)
            del asked[given]
            yield answers.pop(given)
            given += 1

    def _negotiate(self) -> int:
        if self._receive(16) != b"NBDMAGICIHAVEOPT":
            raise self._unusable("that is no NBD server")
        self._receive(2)
        # Fixed newstyle, and no 124 bytes of padding.
        self._send(struct.pack(">I", 3))
        self._send(struct.pack(">QIIIH", OPTION, GO, 6, 0, 0))
        size = -1
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length)
            if magic != REPLY or kind & 0x80000000:
                raise self._unusable(f"qemu-nbd refuses: {data.decode(errors='replace')}")
            if kind == INFO and data[:2] == b"\0\0":
                size = int(struct.unpack(">Q", data[2:10])[0])
            if kind == ACK:
                return size

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise self._unusable(f"qemu-nbd went away: {error}") from error

    def _receive(self, count: int) -> bytearray:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            try:
                more = self._connection.recv_into(view[got:])
            except OSError as error:
                raise self._unusable(f"qemu-nbd does not answer: {error}") from error
            if not more:
                raise self._unusable("qemu-nbd ended")
            got += more
        return data

    def _unusable(self, what: str) -> RepositoryUnusable:
        return RepositoryUnusable(
            f"{self._what}: {what}.", "See to the storage it is on (dmesg, its own logs)."
        )


@contextmanager
def open_reader(node: dict[str, Any], runtime_dir: str, what: str) -> Iterator[Reader]:
    """Read a block node through a ``qemu-nbd`` that ends with us, however we end.

    :raises RepositoryUnusable: it cannot be opened.
    """
    Path(runtime_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rd-", dir=runtime_dir) as directory:
        path = f"{directory}/nbd"
        process = subprocess.Popen(
            # The kernel kills it with the thread that started it: nothing is left of a read.
            ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", "--read-only", f"--socket={path}",
             f"json:{json.dumps(node)}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            with contextlib.closing(_connected(process, path, what)) as connection:
                yield Reader(connection, what)
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def _connected(process: subprocess.Popen[str], path: str, what: str) -> socket.socket:
    until = time.monotonic() + PATIENCE
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(path)
            return connection
        except OSError:
            connection.close()
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            said = process.communicate()[1].strip()
            raise RepositoryUnusable(
                f"{what} cannot be read: {said or 'qemu-nbd does not start'}.",
                "See to the repository's storage, or use a point of another chain.",
            )
        time.sleep(0.005)


def _strip(node: dict[str, Any], key: str) -> None:
    node.pop(key, None)
    for value in node.values():
        if isinstance(value, dict):
            _strip(value, key)
