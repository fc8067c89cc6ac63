"""A point's record: drafted at the instant, completed at the commit, told as the task's result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from virtvault.models import BackingImage, BackupResult, Point, PointDisk
from virtvault.settings import Settings
from workers.disks import Disk, Layer
from workers.engine import now
from workers.journal import Run
from workers.plan import DiskPlan
from workers.repository import DirectoryRepository

__all__ = ["complete", "draft_disk", "result"]


def draft_disk(disk: Disk, plan: DiskPlan, bitmap: str, witness: int) -> dict[str, object]:
    """What is known of a disk at the instant, as the journal keeps it."""
    below = disk.layers[1:] if plan.sync == "top" else ()
    return {
        "target": disk.target,
        "file": f"{disk.target}.qcow2",
        "sync": plan.sync,
        "parent": plan.parent,
        "reason": plan.reason,
        "virtual_size": disk.virtual_size,
        "source": disk.source,
        "source_format": disk.format,
        "bitmap": bitmap if plan.counts else "",
        "witness": witness if plan.counts else 0,
        "persistent": disk.persistent,
        "backing": [asdict(_backing(layer)) for layer in below],
    }


def _backing(layer: Layer) -> BackingImage:
    entry = Path(layer.filename).stat()
    return BackingImage(layer.filename, layer.driver, entry.st_size, entry.st_mtime_ns)


def complete(
    run: Run, repository: DirectoryRepository, settings: Settings, digests: Mapping[str, str]
) -> Point:
    """The point of a run whose images are complete; ``digests`` are those of their lists."""
    partial = repository.partial(run.uuid, run.point)
    finished: list[PointDisk] = []
    for disk in run.draft["disks"]:
        entry = (partial / disk["file"]).stat()
        backing = tuple(BackingImage(**image) for image in disk["backing"])
        finished.append(
            PointDisk(
                **{**disk, "backing": backing},
                stored=entry.st_blocks * 512,
                length=entry.st_size,
                digests=digests[disk["target"]],
            )
        )
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
        isolated=draft["isolated"],
        state=draft["state"],
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
