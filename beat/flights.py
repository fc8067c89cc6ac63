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
        # Hypervisors that Redis knows nothing of (it was flushed), each since when we saw that.
        self._unknown: dict[str, float] = {}
        self._app = app
        self._client = client
        self._view = view

    def load(self, works: dict[str, Work]) -> None:
        """Take these for all there are."""
        self.works = works

    def ended(self) -> Iterator[tuple[Work, dict[str, Any]]]:
        """Those that have ended, each with its task's meta; all are looked at in turn."""
        many = isinstance(self._app.backend, BaseKeyValueStoreBackend)
        batch = list(itertools.islice(self.works.values(), LOOKED_AT if many else LOOKED_AT_SINGLY))
        if len(batch) < len(self.works):
            for work in batch:  # to the end of the line
                self.works[work.entry] = self.works.pop(work.entry)
        for work, meta in zip(batch, self._metas(batch), strict=True):
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
        hosts = sorted({work.host for work in old})
        alive: Any = self._client.mget([queues.host_key(host) for host in hosts])
        seen: Any = self._client.hmget(queues.HOSTS_KEY, hosts)
        unknown = {host for host, at in zip(hosts, seen, strict=True) if at is None}
        self._unknown = {host: self._unknown.get(host, now) for host in unknown}
        gone = {
            host
            for host, beat, at in zip(hosts, alive, seen, strict=True)
            if not beat and (instant(at.decode()) if at else self._unknown[host]) < now - GONE
        }
        return [work for work in old if work.host in gone]

    def untold(self, now: float) -> list[Work]:
        """Those whose end nobody can tell any more: known to have ended, and its result is gone.

        Results are kept for a week: no beat ran meanwhile, or somebody has removed them.
        """
        old = [work for work in self.works.values() if work.since < now - GONE]
        if not old:
            return []
        is_open: Any = self._client.smismember(queues.OPEN_RUNS_KEY, [work.task_id for work in old])
        ended = [work for work, there in zip(old, is_open, strict=True) if not there]
        metas = self._metas(ended)
        return [
            work
            for work, meta in zip(ended, metas, strict=True)
            if not (meta and meta["status"] in READY)
        ]

    def _metas(self, works: list[Work]) -> list[Any]:
        backend = self._app.backend
        if not works:
            return []
        if isinstance(backend, BaseKeyValueStoreBackend):
            raws = backend.mget([backend.get_key_for_task(work.task_id) for work in works])
            return [backend.decode_result(raw) if raw else None for raw in raws]
        return [backend.get_task_meta(work.task_id, cache=False) for work in works]

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
