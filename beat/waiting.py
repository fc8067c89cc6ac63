"""Work whose time has come and that has not begun: looked through when something has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import redis

from beat.entries import Entry, Work
from beat.fleet_view import FleetView
from beat.room import Begin, Drop, End, Hold, Room, decide

__all__ = ["Waiting"]


class Waiting:
    """What waits, by entry. The order: priority, then how far past its RPO, then when due."""

    def __init__(self, client: redis.Redis, view: FleetView) -> None:
        self.works: dict[str, Work] = {}
        # Set where a look may find what it did not before.
        self.stirred = True
        # What each was held by at the last look.
        self.why: dict[str, str] = {}
        self._client = client
        self._view = view
        self._wake = 0.0
        self._hosts: list[str] = []
        self._alive: frozenset[str] = frozenset()

    def load(self, works: dict[str, Work]) -> None:
        """Take these for all there are."""
        self.works, self.stirred = works, True

    def put(self, work: Work) -> None:
        """One more, or one that takes the place of its entry's earlier one."""
        self.works[work.entry], self.stirred = work, True

    def remove(self, entries: Iterable[str]) -> None:
        """They wait no longer."""
        for entry in entries:
            self.works.pop(entry, None)

    def decided(self, now: float, room: Room) -> Iterator[tuple[Work, Begin | End | Drop]]:
        """What begins or ends now, in its order; ``room`` has to be told of what was begun.

        Who stops early sets ``stirred`` again.
        """
        self.stirred, self._wake = False, float("inf")
        self.why.clear()
        for work in sorted(self.works.values(), key=self._order):
            decision = decide(work, now, self._view, self._alive, room)
            if isinstance(decision, Hold):
                self.why[work.entry] = decision.why
                for moment in (work.begin, work.closes):
                    if now < moment < self._wake:
                        self._wake = moment
            else:
                yield work, decision

    def is_time(self, now: float) -> bool:
        """Whether a look may find anything."""
        if not self.works:
            return False
        if self.stirred:
            uuids = {Entry.parse(entry).uuid for entry in self.works}
            self._hosts = sorted({host for uuid in uuids for host in self._view.hosts(uuid)})
        alive = self._heard_of()
        differs, self._alive = alive != self._alive, alive
        return self.stirred or differs or now >= self._wake

    def _heard_of(self) -> frozenset[str]:
        """The hypervisors with waiting work that live. Their heartbeats, in one round trip."""
        return self._view.alive(self._hosts)

    def _order(self, work: Work) -> tuple[int, float, float, str]:
        policy = self._view.policy(Entry.parse(work.entry).policy)
        return -policy.priority if policy else 0, work.deadline, work.at, work.entry
