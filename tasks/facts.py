"""What the catalog is told of a run besides its request: a pure look at journal and result."""

from __future__ import annotations

from typing import Any

from workers.journal import Run

__all__ = ["facts"]

# What a journal says of a run that has failed.
OF_JOURNAL = ("domain", "uuid", "repository", "point", "started")


def facts(run: Run | None, result: dict[str, Any] | None) -> dict[str, Any]:
    """``domain``, ``uuid``, ``repository``, ``point``, ``started``, ``sync``, and the bytes
    ``transferred`` and ``stored``, as far as they are known; what is not is left out.

    :param run: its journal, None where it has none (any more).
    :param result: what its task returns, None where it failed.
    """
    found: dict[str, Any] = {}
    if run is not None:
        found = {name: getattr(run, name) for name in OF_JOURNAL}
    if result is not None:
        # A verify and a prune tell each point's, of many domains.
        points = [verdict["point"] for verdict in result.get("verdicts", ())]
        told = {"point": points[0] if len(points) == 1 else "", **result}
        found.update({name: told[name] for name in OF_JOURNAL if told.get(name)})
        found.update(_of_disks(result))
    return {name: value for name, value in found.items() if value}


def _of_disks(result: dict[str, Any]) -> dict[str, Any]:
    disks = result.get("disks", ())
    syncs = {disk["sync"] for disk in disks if "sync" in disk}
    sync = syncs.pop() if len(syncs) == 1 else "mixed" if syncs else ""
    return {
        "sync": "none" if "exports" in result else sync,
        **{name: sum(disk.get(name, 0) for disk in disks) for name in ("transferred", "stored")},
    }
