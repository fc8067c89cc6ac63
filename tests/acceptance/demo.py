"""`scripts/demo`: one real guest, backed up and restored through Celery while it writes."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

import libvirt
from rich.console import Console
from rich.table import Table

from tests.acceptance.flow import Flow, PointTaken
from tests.lab import DiskSpec, Guest, Hypervisor

HERE = Path(__file__).resolve().parents[2] / ".demo"
FLOWER_PORT = 5555
MIB = 2**20
POLICIES = """\
policies:
  - name: hourly
    select: {{names: [{name}]}}
    schedule: {{every: 1h}}
    rpo: 3h
    retention: {{hourly: 24, daily: 7}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--stay", action="store_true", help="keep it running until Ctrl-C")
    stay = parser.parse_args().stay
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    console = Console(width=None if Console().is_terminal else 150)
    with ExitStack() as stack:
        stack.enter_context(_directory(HERE))
        # Outside the checkout: QEMU's user must reach the guest's disks.
        guests = Path(tempfile.mkdtemp(prefix="virtvault-demo-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, guests, ignore_errors=True)
        guests.chmod(0o711)
        console.print("Starting libvirt (where it does not run) and a small Linux guest …")
        connection = stack.enter_context(Hypervisor()).connect()
        stack.callback(connection.close)
        guest = stack.enter_context(
            Guest(
                connection,
                guests,
                "virtvault-demo",
                [DiskSpec("vda", "qcow2", 1024 * MIB), DiskSpec("vdb", "raw", 512 * MIB)],
                boot=True,
                writer=True,
            )
        )
        guest.start()
        guest.wait_ready()
        console.print("The guest is up and writes to vda (qcow2, 1 GiB) and vdb (raw, 512 MiB).")
        console.print("virtvault up …")
        flow = Flow(HERE / "state", FLOWER_PORT)
        stack.enter_context(flow.up())
        console.print(f"Flower: http://127.0.0.1:{FLOWER_PORT}/")
        for _ in range(4):
            guest.wait_ticks(guest.ticks() + 6)
            # The limit keeps even these small disks' copy going long enough to write beside it;
            # it counts all that the job goes through, the empty parts too.
            flow.take_point(
                guest, guests, "--speed", "256M", tell=lambda line: console.print(f"  {line}")
            )
        for number, point in enumerate(flow.points):
            flow.restore_and_compare(point, guest, HERE / f"restored-{number}")
        console.print(_table(flow.points))
        console.print(
            "Every restored disk was compared byte for byte with a copy of the guest's disk made "
            "at the point's instant. What was read includes zeroes: the guest trims its free space."
        )
        _prune(console, flow, guest)
        stack.callback(_remove, connection, f"{guest.name}-again")
        _boot_again(console, flow, f"{guest.name}-again", guests / "again")
        _by_policy(console, flow, guest)
        if stay:
            _stay(console, flow)
    console.print("All is taken down again.")


def _prune(console: Console, flow: Flow, guest: Guest) -> None:
    """Two points go, the two others are what they were, and are proven."""
    pruned = flow.json("prune", guest.name, "--keep-last", "2", "--yes")
    gone = {removed["point"] for removed in pruned["removed"]}
    kept = [point for point in flow.points if point.result["point"] not in gone]
    verified = flow.json("verify", guest.name)
    for number, point in enumerate(kept):
        flow.restore_and_compare(point, guest, HERE / f"restored-pruned-{number}")
    console.print(
        f"virtvault prune --keep-last 2: {len(gone)} points went into the {len(kept)} that stay; "
        f"virtvault verify: {verified['state']}; restored again, every disk equal."
    )


def _boot_again(console: Console, flow: Flow, name: str, directory: Path) -> None:
    """The newest point runs as a domain of its own before its data is there."""
    point = flow.points[-1].result["point"]
    options = ("--as", name, "--mode", "instant", "--to", str(directory))
    done = flow.json("restore", point, *options)
    ran, ended = (_seconds(done["started"], done[when]) for when in ("booted", "finished"))
    console.print(
        f"virtvault restore --as {name} --mode instant: it ran after {ran:.1f} s, and needed the "
        f"repository no more after {ended:.1f} s."
    )


def _by_policy(console: Console, flow: Flow, guest: Guest) -> None:
    """From now on beat backs the guest up each hour."""
    path = HERE / "policies.yaml"
    path.write_text(POLICIES.format(name=guest.name))
    flow.run("policy", "apply", "-f", str(path))
    preview = flow.json("policy", "preview", "--hours", "24")
    runs = [run for run in preview["runs"] if run["kind"] == "backup"]
    console.print(
        f"virtvault policy apply: {len(runs)} backups in the next 24 hours, the first at "
        f"{runs[0]['at']}. virtvault status {guest.name}:"
    )
    console.print(flow.run("status", guest.name), markup=False, highlight=False)


def _remove(connection: libvirt.virConnect, name: str) -> None:
    """The restored domain goes with the demo; its images lie in the demo's directory."""
    with contextlib.suppress(libvirt.libvirtError):
        domain = connection.lookupByName(name)
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _table(points: list[PointTaken]) -> Table:
    table = Table(title="Points of domain virtvault-demo")
    table.add_column("point", no_wrap=True)
    for heading in ("disk", "done as", "why"):
        table.add_column(heading)
    for heading in ("read", "stored", "backup", "guest wrote", "restored"):
        table.add_column(heading, justify="right")
    table.add_column("equals source")
    for point in points:
        result = point.result
        for row, disk in enumerate(result["disks"]):
            first = row == 0
            table.add_row(
                result["point"] if first else "",
                disk["target"],
                disk["sync"],
                disk["reason"],
                _mib(disk["transferred"]),
                _mib(disk["stored"]),
                f"{point.seconds:.1f} s" if first else "",
                f"{point.ticks_meanwhile} times" if first else "",
                f"{point.restore_seconds:.1f} s" if first else "",
                ("yes" if point.equal else "NOT PROVEN") if first else "",
                end_section=row == len(result["disks"]) - 1,
            )
    return table


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """A fresh folder of the checkout's own, removed at the end."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    yield
    shutil.rmtree(path)


def _stay(console: Console, flow: Flow) -> None:
    console.print(
        f"Staying up. Flower: http://127.0.0.1:{flow.flower_port}/\n"
        f"In another terminal:\n"
        f"  export VIRTVAULT_CONFIG={flow.state_dir}/virtvault.toml\n"
        f"  .venv/bin/virtvault points\n"
        f"  .venv/bin/virtvault backup virtvault-demo\n"
        "Ctrl-C takes it all down."
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Taking it down …")


if __name__ == "__main__":
    main()
