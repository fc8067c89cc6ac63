"""Short questions and job control on a hypervisor, on a queue of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from tasks import revocation
from virtvault import queues, schemas
from virtvault.errors import VirtvaultError
from virtvault.models import BitmapRequest
from workers import bitmaps, job_control, job_listing, questions
from workers.engine import Engine

__all__ = ["register"]

Plain = dict[str, Any]


def register(app: Celery, engine: Engine) -> None:
    """Add the control tasks: answered from live state alone, and no events for Flower's list."""

    def domains() -> list[Plain]:
        return [schemas.dump(d) for d in engine.hypervisor.domains()]

    def disks(domain: str) -> list[Plain]:
        return [schemas.dump(d) for d in questions.disks(engine, domain)]

    def jobs() -> list[Plain]:
        return [schemas.dump(j) for j in job_listing.block_jobs(engine)]

    def check() -> list[Plain]:
        return [schemas.dump(line) for line in questions.check(engine)]

    def find_point(point: str) -> Plain | None:
        found = questions.find_point(engine, point)
        return schemas.dump(found) if found else None

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
        queues.JOBS: jobs,
        queues.CHECK: check,
        queues.FIND_POINT: find_point,
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
