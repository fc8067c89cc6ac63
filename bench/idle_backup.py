"""What virtvault adds to QEMU's own work: `scripts/bench`, ratios in one run.

Takes `virtvault backup` of an idle disk of 1 GiB with nothing dirty, end to end, beside the time
QEMU's job took of it; and a full of its data beside `cp` and a plain blockdev-backup to a path.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.acceptance.flow import Flow
from tests.lab import DiskSpec, Guest, Hypervisor

ROUNDS = 5
MIB = 2**20
DATA = 512


def main() -> None:
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="vvbench-", dir="/var/tmp"))
        )
        directory.chmod(0o711)
        (directory / "guest").mkdir()
        connection = stack.enter_context(Hypervisor()).connect()
        stack.callback(connection.close)
        disks = [DiskSpec("vda", "qcow2", 1024 * MIB)]
        guest = stack.enter_context(
            Guest(connection, directory / "guest", "vv-bench", disks, boot=False)
        )
        guest.start()
        guest.qemu_io("vda", f"write -P 0x41 0 {DATA}M")
        flow = Flow(directory / "state", 5599)
        stack.enter_context(flow.up())

        full, job = _backup(flow, "full")
        copy = _timed(lambda: _run("cp", str(guest.image("vda")), str(directory / "copy")))
        plain = _timed(lambda: _plain(guest, directory / "guest" / "plain.qcow2"))
        print(f"full of {DATA} MiB in 1 GiB (one round, noisy):")
        print(f"  end to end {full:.2f} s, QEMU's job {job:.2f} s")
        print(f"  to cp: {full / copy:.1f} x; to a plain blockdev-backup: {full / plain:.1f} x")

        rounds = [_backup(flow, "auto") for _ in range(ROUNDS)]
        total = statistics.median(total for total, _ in rounds)
        job = statistics.median(job for _, job in rounds)
        started = _timed(lambda: flow.run("--version"))
        print(f"incremental with nothing dirty (median of {ROUNDS}):")
        print(f"  end to end {total:.2f} s, of which QEMU's job {job:.3f} s: {total / job:.0f} x")
        print(f"  of it the command's own start: {started:.2f} s")


def _backup(flow: Flow, sync: str) -> tuple[float, float]:
    began = time.monotonic()
    result = flow.json("backup", "vv-bench", "--sync", sync)
    return time.monotonic() - began, result["job_seconds"]


def _plain(guest: Guest, target: Path) -> None:
    """QEMU's own backup job to a path, with the same tuning, and nothing around it."""
    _run("qemu-img", "create", "-q", "-f", "qcow2", str(target), "1G")
    target.chmod(0o666)
    node = next(
        block["inserted"]["node-name"]
        for block in guest.qmp("query-block")
        if "virtio-disk0" in block.get("qdev", "")
    )
    guest.qmp(
        "blockdev-add",
        **{
            "driver": "qcow2",
            "node-name": "plain",
            "file": {"driver": "file", "filename": str(target)},
        },
    )
    arguments = {
        "job-id": "plain",
        "device": node,
        "target": "plain",
        "sync": "full",
        "x-perf": {"max-workers": 16, "max-chunk": 4 * MIB},
    }
    guest.qmp("blockdev-backup", **arguments)
    while guest.qmp("query-block-jobs"):
        time.sleep(0.02)
    guest.qmp("blockdev-del", **{"node-name": "plain"})


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


if __name__ == "__main__":
    main()
