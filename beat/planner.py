"""Keeps the entries what policies and inventories say: adds, removes and re-times what differs."""

from __future__ import annotations

import itertools
import json
import time

from beat import entries
from beat.board import Board
from beat.entries import Entry
from beat.state import DUE, PLAN, Change
from virtvault.models import Schedule

__all__ = ["Planner"]

# Domains that are planned in one step, and seconds for such steps in one tick.
STEP = 200
BUDGET = 0.5
# Seconds until domains that two hypervisors run are looked at again: one of them may be gone.
TORN = 60.0
# Seconds a due time may lie behind the schedule's next before it counts as wrong.
TOLERANCE = 1.0


class Planner:
    """Plans the domains that the view says have changed, and takes what is gone off the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._state = board.state
        self._view = board.view
        # Domains whose due times are compared with the clock, too: it was set, or another beat's
        # differs from ours.
        self.doubted: set[str] = set()
        self._torn: dict[str, None] = {}
        self._torn_at = 0.0

    def plan(self, now: float) -> bool:
        """Plan as many as a tick has time for; gives whether some are left.

        :raises Deposed: another beat leads.
        """
        began = time.monotonic()
        changed = self._view.changed
        if self._torn and not 0 <= now - self._torn_at < TORN:
            self._torn_at = now
            changed |= self._torn
            self._torn.clear()
        if changed:
            self._board.waiting.stirred = True
        while changed and time.monotonic() - began < BUDGET:
            batch = list(itertools.islice(changed, STEP))
            self._step(batch, now)
            for uuid in batch:
                changed.pop(uuid, None)
                self.doubted.discard(uuid)
        return bool(changed)

    def _step(self, uuids: list[str], now: float) -> None:
        plans = self._state.plans(uuids)
        change = Change()
        dropped: list[str] = []
        retimed: dict[Entry, Schedule] = {}
        alive = self._view.alive({host for uuid in uuids for host in self._view.torn(uuid)})
        for uuid, before in zip(uuids, plans, strict=True):
            wanted = self._view.wanted(uuid, alive)
            if not wanted and self._view.torn(uuid):
                self._torn[uuid] = None
                continue  # two hypervisors run it: what was planned waits until that is mended
            after = {
                f"{entry.policy}/{entry.kind}": entries.signature(schedule)
                for entry, schedule in wanted.items()
            }
            for entry, schedule in wanted.items():
                name = f"{entry.policy}/{entry.kind}"
                if name not in before:
                    change.due(str(entry), self._begins(entry, schedule, now))
                elif before[name] != after[name] or uuid in self.doubted:
                    retimed[entry] = schedule
            for name in before.keys() - after.keys():
                change.add("ZREM", DUE, f"{name}/{uuid}")
                change.no_wait(f"{name}/{uuid}")
                dropped.append(f"{name}/{uuid}")
            if after != before:
                words = ("HSET", PLAN, uuid, json.dumps(after)) if after else ("HDEL", PLAN, uuid)
                change.add(*words)
        undecided = [name for name in dropped if name in self._board.waiting.works]
        for name in undecided:
            change.undecide(name)
        self._retime(change, retimed, now)
        self._board.commit(change)
        for name in undecided:
            self._board.lasts.pop(name, None)
        self._board.waiting.remove(dropped)

    def _begins(self, entry: Entry, schedule: Schedule, now: float) -> float:
        """When a new entry is due: after its last slot, where it had one and was away since."""
        slot, _ = self._board.lasts.get(str(entry), (0.0, 0.0))
        if slot:
            return min(
                entries.following(schedule, entry.uuid, slot).at,
                entries.upcoming(schedule, entry.uuid, now).at,
            )
        if entry.kind == "backup":
            return entries.first_at(schedule, entry.uuid, now)
        return entries.upcoming(schedule, entry.uuid, now).at

    def _retime(self, change: Change, retimed: dict[Entry, Schedule], now: float) -> None:
        """What is due already stays so: a new schedule does not take back what was owed."""
        scores = self._state.scores([str(entry) for entry in retimed])
        for (entry, schedule), score in zip(retimed.items(), scores, strict=True):
            at = entries.upcoming(schedule, entry.uuid, now).at
            if score is None:
                at = self._begins(entry, schedule, now)
            elif score <= now or (entry.uuid in self.doubted and score <= at + TOLERANCE):
                continue
            change.due(str(entry), at)
