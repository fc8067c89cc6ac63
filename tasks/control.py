"""Short questions and job control on a hypervisor, on a queue of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from tasks import revocation
from tasks.spool import Spool
from virtvault import queues, schemas
from virtvault.errors import VirtvaultError
from virtvault.models import BitmapRequest
from workers import bitmaps, job_control, job_listing, labels, questions, stored
from workers.engine import Engine, now
from workers.inventory import BOOT_TESTS

__all__ = ["register"]

Plain = dict[str, Any]


def register(app: Celery, engine: Engine, spool: Spool) -> None:
    """Add the control tasks: answered from live state alone, and no events for Flower's list."""

    def domains() -> list[Plain]:
        found = engine.hypervisor.domains()
        return [schemas.dump(d) for d in found if not d.name.startswith(BOOT_TESTS)]

    def label(uuid: str, changes: dict[str, str]) -> Plain:
        """An empty value removes a label."""
        labels.change(engine.hypervisor, uuid, changes)
        return schemas.dump(engine.hypervisor.describe(uuid))

    def disks(domain: str) -> list[Plain]:
        return [schemas.dump(d) for d in questions.disks(engine, domain)]

    def jobs() -> list[Plain]:
        return [schemas.dump(j) for j in job_listing.block_jobs(engine)]

    def check() -> list[Plain]:
        return [schemas.dump(line) for line in questions.check(engine)]

    def find_point(point: str) -> Plain | None:
        found = stored.find(engine, point)
        return schemas.dump(found) if found else None

    def protect(point: str, reason: str = "") -> Plain:
        """An empty reason takes the protection back."""
        at = now()
        statuses = (
            stored.protect(engine, point, reason) if reason else stored.unprotect(engine, point)
        )
        spool.statuses(statuses, at)
        return next(schemas.dump(status) for status in statuses if status.point == point)

    def scan(repository: str = "", uuid: str = "") -> Any:
        """What repositories there are; or with a domain's ``uuid``, its points in one of them."""
        if uuid:
            return schemas.dump(stored.contents(engine, repository, uuid))
        return [schemas.dump(listing) for listing in stored.listings(engine)]

    # ``name`` is a task's id or, with its domain's ``uuid``, a job's.

    def cancel(name: str, uuid: str = "", others: bool = False) -> str:
        task_id = job_control.task_of(engine, name) if uuid else name
        if task_id:
            return revocation.cancel(app, engine, task_id)
        return job_control.cancel_job(engine, name, uuid, others=others)

    def pause(name: str, uuid: str = "") -> str:
        return job_control.pause(engine, name, uuid)

    def resume(name: str, uuid: str = "") -> str:
        return job_control.resume(engine, name, uuid)

    def set_speed(name: str, rate: int, uuid: str = "") -> str:
        return job_control.set_speed(engine, rate, name, uuid)

    def list_bitmaps(request: Plain) -> list[Plain]:
        found = bitmaps.listing(engine, schemas.load(BitmapRequest, request))
        return [schemas.dump(b) for b in found]

    def add_bitmap(request: Plain) -> Plain:
        return schemas.dump(bitmaps.add(engine, schemas.load(BitmapRequest, request)))

    def clear_bitmap(request: Plain) -> Plain:
        return schemas.dump(bitmaps.clear(engine, schemas.load(BitmapRequest, request)))

    def remove_bitmap(request: Plain) -> Plain:
        return schemas.dump(bitmaps.remove(engine, schemas.load(BitmapRequest, request)))

    tasks: dict[str, Callable[..., Any]] = {
        queues.DOMAINS: domains,
        queues.DISKS: disks,
        queues.LABEL: label,
        queues.JOBS: jobs,
        queues.CHECK: check,
        queues.FIND_POINT: find_point,
        queues.PROTECT: protect,
        queues.SCAN: scan,
        queues.CANCEL: cancel,
        queues.PAUSE: pause,
        queues.RESUME: resume,
        queues.SET_SPEED: set_speed,
        queues.BITMAPS: list_bitmaps,
        queues.ADD_BITMAP: add_bitmap,
        queues.CLEAR_BITMAP: clear_bitmap,
        queues.REMOVE_BITMAP: remove_bitmap,
    }
    for name, answer in tasks.items():
        app.task(name=name, throws=(VirtvaultError,), send_events=False)(answer)
