"""QEMU's own log of a domain, where HMP's qemu-io leaves its results."""

import re
import time
from pathlib import Path

__all__ = ["GuestWriteFailed", "QemuLog", "check_result"]

# Seconds virtlogd gets to bring QEMU's output into the file; 1-10 ms is usual.
FLUSH_TIMEOUT = 10.0

# The commands that report "<verb> done/asked bytes" when all went well.
REPORTED = re.compile(r"(?:wrote|read|discard) (\d+)/(\d+) bytes")


# libvirt and QEMU put notices of their own, which begin with the date, between the results.
NOTICE = re.compile(r"^\d{4}-\d\d-\d\d[T ].*\n", re.MULTILINE)


class GuestWriteFailed(Exception):
    """A request made through a guest's own device failed, as the guest itself would have seen."""


class QemuLog:
    """Reads what QEMU printed since the last look; the file is virtlogd's and may be rotated."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def end(self) -> int:
        """The present length in bytes: where output that comes from now on will begin."""
        return self.path.stat().st_size if self.path.exists() else 0

    def until(self, marker: str, start: int) -> str:
        """The output between `start` and the line that holds `marker`.

        Raises TimeoutError when the marker does not show up.
        """
        deadline = time.monotonic() + FLUSH_TIMEOUT
        while True:
            before, found, _ = self._since(start).partition(marker)
            if found:
                return before
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.path} does not show {marker!r}; has virtlogd ended?")
            time.sleep(0.005)

    def _since(self, start: int) -> str:
        # Shorter than it was means rotated: what we look for then is in the new file.
        offset = start if self.end() >= start else 0
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")


def check_result(command: str, output: str) -> None:
    """Raise GuestWriteFailed unless `output` is what qemu-io prints when `command` succeeded."""
    text = NOTICE.sub("", output).strip()
    report = REPORTED.search(text)
    # Of the commands the lab uses, only flush says nothing when all is well.
    silent = command.split()[0] in ("flush", "f")
    complete = report is not None and report[1] == report[2]
    if "failed" in text or not (complete or (silent and not text)):
        raise GuestWriteFailed(f"qemu-io {command!r}: {text or 'no result'}")
