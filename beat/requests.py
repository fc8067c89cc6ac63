"""The request that an entry's work is. Pure."""

from __future__ import annotations

from typing import Any

from virtvault import schemas
from virtvault.models import BackupRequest, Policy, PruneRequest, VerifyRequest

__all__ = ["request"]


def request(policy: Policy, kind: str, uuid: str, repository: str) -> dict[str, Any]:
    """What is asked of the hypervisor, as JSON-able data."""
    if kind == "prune":
        return schemas.dump(
            PruneRequest(repository=repository, domain=uuid, rules=policy.retention)
        )
    if kind != "backup":
        boot = kind == "boot_test"
        return schemas.dump(VerifyRequest(repository=repository, domain=uuid, boot=boot))
    return schemas.dump(
        BackupRequest(
            domain=uuid,
            repository=repository,
            sync="full" if policy.sync == "full" else "auto",
            disks=policy.disks,
            speed=policy.speed,
            freeze=policy.freeze,
            full_points=policy.full_every.points,
            full_days=policy.full_every.days,
        )
    )
