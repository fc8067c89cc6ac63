"""The demo's flow through the command line, with a real guest that writes all the while."""

from __future__ import annotations

import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.flow import CommandFailed, Flow
from tests.lab import DiskSpec, Guest, Hypervisor

MIB = 2**20


@pytest.fixture
def guests() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vvlab-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o711)
        yield path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_full_and_three_incrementals_of_a_writing_guest_restore_to_what_it_was(
    guests: Path,
) -> None:
    with ExitStack() as stack:
        connection = stack.enter_context(Hypervisor()).connect()
        stack.callback(connection.close)
        guest = stack.enter_context(
            Guest(
                connection,
                guests,
                "vv-acceptance",
                [DiskSpec("vda", "qcow2", 256 * MIB), DiskSpec("vdb", "raw", 128 * MIB)],
                boot=True,
                writer=True,
            )
        )
        guest.start()
        guest.wait_ready()
        flow = Flow(guests / "state", _free_port())
        stack.enter_context(flow.up())

        checked = flow.json("check")
        assert {line["verdict"] for line in checked} <= {"ok", "warning"}
        assert [d["name"] for d in flow.json("domains") if d["name"] == guest.name]
        assert {d["target"] for d in flow.json("disks", guest.name)} == {"vda", "vdb"}

        for number in range(4):
            guest.wait_ticks(guest.ticks() + 3)
            options = ("--speed", "64M") if number == 0 else ()
            flow.take_point(guest, guests, *options, tell=print)
        assert flow.points[0].ticks_meanwhile > 0, "the guest wrote while the full was copied"
        kinds = [{d["sync"] for d in point.result["disks"]} for point in flow.points]
        assert kinds == [{"full"}] + [{"incremental"}] * 3

        for number, point in enumerate(flow.points):
            flow.restore_and_compare(point, guest, guests / f"restored-{number}")
        assert all(point.equal for point in flow.points)

        ids = [point.result["point"] for point in flow.points]
        assert [p["id"] for p in flow.json("points", guest.name)] == ids
        assert flow.json("show", ids[-1])["disks"][0]["parent"] == ids[-2]
        pruned = flow.json("prune", guest.name, "--keep-last", "2", "--yes")
        assert {removed["point"] for removed in pruned["removed"]} == set(ids[:2])
        assert [p["id"] for p in flow.json("points", guest.name)] == ids[2:]
        assert flow.json("verify", guest.name)["state"] == "good"
        for number, point in enumerate(flow.points[2:]):
            flow.restore_and_compare(point, guest, guests / f"pruned-{number}")
        # Other tests' domains are on this host too.
        assert [job for job in flow.json("jobs") if job["domain"] == guest.name] == []
        flower = f"http://127.0.0.1:{flow.flower_port}/tasks"
        with urllib.request.urlopen(flower, timeout=30) as page:
            assert page.status == 200

        # Not suspended: the guest agent freezes its file systems around the instant alone.
        frozen = flow.json("backup", guest.name, "--freeze", "always")
        assert frozen["consistency"] == "agent-frozen"
        assert frozen["paused_ms"] < 1500
        ticks = guest.ticks()
        guest.wait_ticks(ticks + 2)  # thawed: it writes again

        for bad in (("backup", "no-such-domain"), ("show", "20200101T000000Z-00000000")):
            with pytest.raises(CommandFailed, match="exit 2"):
                flow.run(*bad)
