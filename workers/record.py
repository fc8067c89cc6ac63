"""A point's record: drafted at the instant, completed at the commit, told as the task's result."""

from __future__ import annotations

from importlib.metadata import version

from virtvault.models import BackupResult, Point, PointDisk
from virtvault.settings import Settings
from workers.disks import Disk
from workers.engine import now
from workers.journal import Run
from workers.plan import DiskPlan
from workers.repository import DirectoryRepository

__all__ = ["complete", "draft_disk", "result"]


def draft_disk(disk: Disk, plan: DiskPlan, bitmap: str) -> dict[str, object]:
    """What is known of a disk at the instant, as the journal keeps it."""
    return {
        "target": disk.target,
        "file": f"{disk.target}.qcow2",
        "sync": plan.sync,
        "parent": plan.parent,
        "reason": plan.reason,
        "virtual_size": disk.virtual_size,
        "source": disk.source,
        "source_format": disk.format,
        "bitmap": bitmap,
        "persistent": disk.persistent,
    }


def complete(run: Run, repository: DirectoryRepository, settings: Settings) -> Point:
    """The point of a run whose images are complete."""
    partial = repository.partial(run.uuid, run.point)
    finished: list[PointDisk] = []
    for disk in run.draft["disks"]:
        stat = (partial / disk["file"]).stat()
        finished.append(PointDisk(**disk, stored=stat.st_blocks * 512, length=stat.st_size))
    draft = run.draft
    qemu = draft["qemu"]
    return Point(
        id=run.point,
        repository=repository.name,
        repository_id=repository.id,
        task_id=run.task_id,
        domain=run.domain,
        uuid=run.uuid,
        host=settings.host,
        instant=draft["instant"],
        started=run.started,
        finished=now(),
        consistency=draft["consistency"],
        paused_ms=draft["paused_ms"],
        frozen_ms=draft["frozen_ms"],
        isolated=True,
        disks=tuple(finished),
        skipped=draft["skipped"],
        notes=tuple(draft["notes"]),
        versions={
            "virtvault": version("virtvault"),
            "qemu": f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}",
        },
    )


def result(point: Point, job_seconds: float) -> BackupResult:
    """What a backup task returns for a committed point."""
    return BackupResult(
        task_id=point.task_id,
        point=point.id,
        domain=point.domain,
        uuid=point.uuid,
        host=point.host,
        repository=point.repository,
        state="complete",
        consistency=point.consistency,
        instant=point.instant,
        paused_ms=point.paused_ms,
        frozen_ms=point.frozen_ms,
        isolated=point.isolated,
        started=point.started,
        finished=point.finished,
        job_seconds=round(job_seconds, 3),
        disks=point.disks,
        skipped=point.skipped,
        notes=point.notes,
    )
