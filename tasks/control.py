"""Short questions and job control on a hypervisor, on a queue of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from virtvault import queues, schemas
from virtvault.errors import VirtvaultError
from workers import questions
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
        return [schemas.dump(j) for j in questions.block_jobs(engine)]

    def check() -> list[Plain]:
        return [schemas.dump(line) for line in questions.check(engine)]

    def find_point(point: str) -> Plain | None:
        found = questions.find_point(engine, point)
        return schemas.dump(found) if found else None

    def cancel(task_id: str) -> str:
        return questions.cancel(engine, task_id)

    def pause(task_id: str) -> str:
        return questions.pause(engine, task_id)

    def resume(task_id: str) -> str:
        return questions.resume(engine, task_id)

    tasks: dict[str, Callable[..., Any]] = {
        queues.DOMAINS: domains,
        queues.DISKS: disks,
        queues.JOBS: jobs,
        queues.CHECK: check,
        queues.FIND_POINT: find_point,
        queues.CANCEL: cancel,
        queues.PAUSE: pause,
        queues.RESUME: resume,
    }
    for name, answer in tasks.items():
        app.task(name=name, throws=(VirtvaultError,), send_events=False)(answer)
