"""Work that was dispatched and has not ended: what limits count, and how its end is seen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import redis
from celery import Celery
from celery.backends.base import BaseKeyValueStoreBackend

from beat.due import window
from beat.entries import Origin, Work, instant
from beat.fleet_view import FleetView
from virtvault import queues
from virtvault.runs import RunRecord

__all__ = ["Flights"]

# Tasks whose results are looked at in one tick: in one round trip, or one by one in a database.
LOOKED_AT, LOOKED_AT_SINGLY = 500, 50
# Seconds after which a hypervisor that is not heard of keeps no room from others any more.
GONE = 3600.0
READY = ("SUCCESS", "FAILURE", "REVOKED")


class Flights:
    """By entry: no entry has two."""

    def __init__(self, app: Celery, client: redis.Redis, view: FleetView) -> None:
        self.works: dict[str, Work] = {}
        self._app = app
        self._client = client
        self._view = view

    def load(self, works: dict[str, Work]) -> None:
        """Take these for all there are."""
        self.works = works

    def ended(self) -> Iterator[tuple[Work, dict[str, Any]]]:
        """Those that have ended, each with its task's meta; all are looked at in turn."""
        backend = self._app.backend
        many = isinstance(backend, BaseKeyValueStoreBackend)
        batch = list(itertools.islice(self.works.values(), LOOKED_AT if many else LOOKED_AT_SINGLY))
        if len(batch) < len(self.works):
            for work in batch:  # to the end of the line
                self.works[work.entry] = self.works.pop(work.entry)
        if not batch:
            return
        if many:
            raws = backend.mget([backend.get_key_for_task(work.task_id) for work in batch])
            metas = [backend.decode_result(raw) if raw else None for raw in raws]
        else:
            metas = [backend.get_task_meta(work.task_id, cache=False) for work in batch]
        for work, meta in zip(batch, metas, strict=True):
            if meta and meta["status"] in READY:
                yield work, meta

    def strangers(self) -> list[Work]:
        """Runs of our policies that a worker holds and that are not known here.

        Another beat's, before a flush; or one that was given up, whose hypervisor is back.
        """
        members: Any = self._client.smembers(queues.OPEN_RUNS_KEY)
        known = {work.task_id for work in self.works.values()}
        unknown = sorted({member.decode() for member in members} - known)
        with self._client.pipeline(transaction=False) as pipe:
            for task_id in unknown:
                pipe.hgetall(queues.run_key(task_id))
                pipe.exists(queues.lease_key(task_id))
            answer: Any = pipe.execute()
        held = [raw for raw, lease in zip(answer[::2], answer[1::2], strict=True) if lease]
        runs = [RunRecord.parse(raw) for raw in held if raw.get(b"origin")]
        return [work for run in runs if run.state != "ended" and (work := self._work(run))]

    def abandoned(self, now: float) -> list[Work]:
        """Those whose hypervisor has not been heard of for so long that they are given up."""
        old = [work for work in self.works.values() if work.since < now - GONE]
        if not old:
            return []
        alive: Any = self._client.mget([queues.host_key(work.host) for work in old])
        seen: Any = self._client.hmget(queues.HOSTS_KEY, [work.host for work in old])
        return [
            work
            for work, beat, at in zip(old, alive, seen, strict=True)
            if not beat and (at is None or instant(at.decode()) < now - GONE)
        ]

    def _work(self, run: RunRecord) -> Work | None:
        try:
            origin = Origin.parse(run.origin)
        except ValueError:
            return None
        entry = origin.entry
        schedule, place = self._view.schedule(entry), self._view.place(entry.uuid)
        closes = origin.slot + (window(schedule) if schedule else 0)
        return Work(
            entry=str(entry),
            slot=origin.slot,
            at=origin.slot,
            closes=closes,
            attempt=origin.attempt,
            deadline=origin.slot,
            task_id=run.task_id,
            host=run.host,
            domain=place.info.name if place else "",
            repository=str(run.request.get("repository", "")),
            since=run.created,
            request=json.dumps(run.request),
        )
