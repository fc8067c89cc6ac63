"""What a preview is made of, from the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from beat.preview import Fleet, preview
from tasks.catalog import Catalog
from virtvault.errors import InvalidRequest, UnknownDomain
from virtvault.models import PolicyDocument, Preview
from workers.retention import TOP, Candidate

__all__ = ["foresee"]

# Hours and runs of a preview at most: it goes through Redis.
HOURS, RUNS = 24 * 31, 10_000


def foresee(
    catalog: Catalog,
    document: PolicyDocument | None,
    now: datetime,
    hours: int,
    limit: int,
    domain: str,
) -> Preview:
    """What ``document``, or the policies in force, would do.

    :param domain: the only one looked at (uuid, name or ``host/name``), empty for all.

    :raises InvalidRequest: too far ahead.
    :raises UnknownDomain: no hypervisor has the domain.
    """
    if not 0 <= hours <= HOURS:
        raise InvalidRequest(f"hours: {hours} is not 0 to {HOURS}.", "Look less far ahead.")
    found = catalog.domain(domain) if domain else catalog.domains()
    # Of an absent one nothing can be backed up; it is another one's business to say so.
    domains = [info for info, _ in found if info.state != "absent"]
    if domain and not domains:
        raise UnknownDomain(
            f"No hypervisor has a domain {domain!r}.", "`virtvault domains` lists them."
        )
    fleet = Fleet(
        domains=domains,
        inventories={inventory.host: inventory for inventory in catalog.inventories()},
        seconds={uuid: run.seconds for uuid, run in catalog.last_runs().items()},
        points=_Points(catalog),
    )
    version = catalog.policies()
    in_force = (version and version.document) or PolicyDocument()
    meant = in_force if document is None else document
    return preview(meant, fleet, now, hours, max(0, min(limit, RUNS)), in_force)


class _Points:
    """A domain's points as retention looks at them; those of the last domain are kept."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._uuid = ""
        self._of: dict[tuple[str, str], list[Candidate]] = {}

    def __call__(self, uuid: str, repository_id: str, repository: str) -> Sequence[Candidate]:
        if uuid != self._uuid:
            self._uuid, self._of = uuid, self._read(uuid)
        return [
            point
            for (id_, name), points in self._of.items()
            if (id_ == repository_id if repository_id else name == repository)
            for point in points
        ]

    def _read(self, uuid: str) -> dict[tuple[str, str], list[Candidate]]:
        statuses = {(s["point"], s["repository_id"]): s for s in self._catalog.statuses(uuid)}
        found: dict[tuple[str, str], list[Candidate]] = {}
        for point in self._catalog.points(uuid):
            status = statuses.get((point["id"], point["repository_id"]), {})
            candidate = Candidate(
                id=point["id"],
                instant=point["instant"],
                protected=status.get("protected", ""),
                state=status.get("state", "ok"),
                disks=tuple(
                    f"{disk['target']} {TOP}" if disk["sync"] == "top" else disk["target"]
                    for disk in point["disks"]
                ),
            )
            found.setdefault((point["repository_id"], point["repository"]), []).append(candidate)
        return found
