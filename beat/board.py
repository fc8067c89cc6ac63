"""All that the beat which leads has on its hands: in memory, and the same in Redis."""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import Celery

from beat import entries
from beat.due import window
from beat.entries import Entry, Work
from beat.fleet_view import FleetView
from beat.flights import Flights
from beat.records import Records
from beat.state import FLIGHT, READY, Change, State
from beat.waiting import Waiting
from virtvault import queues

__all__ = ["Board"]

log = logging.getLogger(__name__)


class Board:
    """``lasts`` maps entries to their last slot and the instant of their newest good point (0.0:
    not known)."""

    def __init__(self, app: Celery, client: redis.Redis, state: State, view: FleetView) -> None:
        self.state = state
        self.view = view
        self.lasts: dict[str, tuple[float, float]] = {}
        # Slots whose tasks were dispatched before a flush that took all memory of them, with the
        # attempt.
        self.lost: dict[str, tuple[float, int]] = {}
        self.waiting = Waiting(client, view)
        self.flights = Flights(app, client, view)
        self.records = Records(app, state)

    def commit(self, *changes: Change) -> list[bool]:
        """Change Redis in one step; gives which changes had nothing against them.

        :raises Deposed: another beat leads.
        """
        asked = [change for change in changes if change.commands]
        done = self.state.commit(*asked)
        for change, made in zip(asked, done, strict=True):
            if made:
                self.records.added(change.records)
        return done

    def load(self) -> None:
        """Take up what Redis has."""
        self.lasts.clear()
        self.lasts.update(self.state.lasts())
        self.waiting.load(self.state.works(READY))
        self.flights.load(self.state.works(FLIGHT))
        self.records.load()
        log.info("leading, with %d at work, %d waiting", *self._sizes())

    def rewrite(self) -> None:
        """Redis was flushed: tell it what we know. Runs that no worker tells of are swept."""
        log.warning("Redis was flushed: going on with %d at work, %d waiting", *self._sizes())
        for work in self.flights.works.values():
            change = Change(unless=queues.run_key(work.task_id))
            change.run(work.run)
            self.state.commit(change)
        works = [(READY, work) for work in self.waiting.works.values()]
        works += [(FLIGHT, work) for work in self.flights.works.values()]
        self.state.restore(self.lasts, works, self.records)

    def begin_anew(self, said: dict[str, dict[str, Any]]) -> None:
        """Neither Redis nor we know anything: go on from what central has of each entry."""
        self.lasts.clear()
        self.lost.clear()
        for entry, slot in said.items():
            at, dispatched = entries.instant(slot["slot"]), slot["state"] == "dispatched"
            self.lasts[entry] = (at, at if dispatched else 0.0)
            if dispatched and not slot["ended"]:
                self.lost[entry] = (at, slot["attempt"])
        self.waiting.load({})
        self.flights.load({})
        self.state.restore(self.lasts, [], self.records)
        log.info("leading, with %d entries' last slots from central", len(said))

    def adopt(self, now: float) -> None:
        """Count open runs of ours that we do not know of: their workers have just told of them.

        A later slot that waits does not begin beside one.
        """
        change, found = Change(), []
        for work in self.flights.strangers():
            if work.entry not in self.flights.works:
                change.claim(work)
                found.append(work)
                before = self.waiting.works.get(work.entry)
                if before is not None and before.slot != work.slot:
                    why = (
                        f"The previous run, task {work.task_id} on {work.host}, was at work again."
                    )
                    skipped = before.attempt == 1 and not before.lost
                    change.tell(
                        before.record("skipped", now, why) if skipped else before.over(now, why)
                    )
        self.commit(change)
        for work in found:
            self.flights.works[work.entry] = work
            self.waiting.remove([work.entry])

    def send_lost(self, now: float) -> None:
        """Tasks that were dispatched before the flush, and that nobody holds or has ended: again.

        They have the ids that they had. A worker that has done one returns what it did. What a
        later slot has taken the place of, or is too late for its policy, has failed.
        """
        change, again = Change(), []
        for name, (slot, attempt) in self.lost.items():
            entry = Entry.parse(name)
            schedule, policy = self.view.schedule(entry), self.view.policy(entry.policy)
            flight = self.flights.works.get(name)
            if schedule is None or policy is None or (flight is not None and flight.slot == slot):
                continue
            closes = slot + window(schedule)
            work = Work(name, slot, slot, closes, attempt, now, slot, lost=True)
            if flight is not None or name in self.waiting.works:
                change.tell(work.over(now, "A later slot took its place."))
            elif now < closes or policy.late == "run":
                again.append(work)
                change.wait(work)
            else:
                change.tell(work.over(now, f"The window ended at {entries.moment(closes)}."))
        self.commit(change)
        for work in again:
            self.waiting.put(work)
        self.lost.clear()

    def _sizes(self) -> tuple[int, int]:
        return len(self.flights.works), len(self.waiting.works)
