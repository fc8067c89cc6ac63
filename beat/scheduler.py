"""The scheduler: what is due becomes a task on its hypervisor's queue, once.

One beat of several leads (:mod:`beat.leader`). What it knows lies in Redis (:mod:`beat.state`);
each step changes it in one piece and only while we lead, so that another one can go on from any
line of this. A task's id is made of its slot and attempt, and its run record is written with the
claim: what was claimed and not published is found by the sweep (:mod:`tasks.sweep`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis
from celery import Celery
from celery.beat import Scheduler
from kombu.exceptions import OperationalError

from beat.asking import Asking, ask_central
from beat.board import Board
from beat.dispatching import dispatch
from beat.ending import give_up, settle
from beat.fleet_view import FleetView
from beat.leader import Deposed, Leadership
from beat.planner import Planner
from beat.rounds import Rounds
from beat.state import State
from beat.taking import take_due
from virtvault import queues, runs, schemas
from virtvault.celery_app import client_app
from virtvault.errors import VirtvaultError
from virtvault.models import PolicyVersion
from virtvault.settings import Settings

__all__ = ["PolicyScheduler"]

log = logging.getLogger(__name__)

# Of the time after which another beat leads: how long the lead holds unrenewed, and how often one
# that stands by looks.
HELD, LOOKED = 0.7, 0.25
# Seconds between two looks for runs that are not known here, and for those to be given up.
STRANGERS = 10.0
# Seconds that the clock may go back between two ticks without a look at all due times.
CLOCK_STEP = 30.0
# Seconds that central is waited for before memory that may be outdated is trusted.
PATIENCE = 60.0


class PolicyScheduler(Scheduler):  # type: ignore[misc]
    """Celery's beat calls :meth:`tick` again and again, and :meth:`close` at the end.

    :param clock: gives the seconds since the epoch.
    :param ask: asks central a question (a task's name, its arguments) and waits for the answer.
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        ask: Callable[..., Any] | None = None,
        lazy: bool = False,
        **_: Any,
    ) -> None:
        self.settings = settings
        self.stopping = False
        self._clock = clock
        self._asking = Asking(ask or ask_central(settings))
        # Flower lists what is dispatched from then on; not what is between beat and central.
        self._shown = client_app(settings)
        client = runs.connect(settings)
        self._leadership = Leadership(client, settings.leader_seconds * HELD)
        self.board = Board(app, client, State(client, self._leadership), FleetView(client))
        self._planner = Planner(self.board)
        self._rounds = Rounds(app, client, settings)
        # Whether memory is what we led with last, whether a step of it may have failed half-way,
        # and whether it has been learnt what there was before.
        self._led = self._unsure = self._informed = False
        self._trust_memory_at = 0.0
        self._quiet_until = self._strangers_at = self._ticked = 0.0
        self._told_away = False
        super().__init__(app, max_interval=settings.beat_interval, lazy=lazy)

    @property
    def leads(self) -> bool:
        """Whether this beat did at its last tick."""
        return self._led

    def setup_schedule(self) -> None:
        """Celery's own schedule stays empty."""

    def tick(self, *_: Any, **__: Any) -> float:
        """Do what is due, in bounded steps; gives the seconds until the next look."""
        interval = self.settings.beat_interval
        try:
            more = self._round(self._clock())
            self._told_away = False
        except Deposed:
            if self._led:
                log.warning("another beat leads now; this one stands by")
            self._led = self._informed = False
            return min(interval, self.settings.leader_seconds * LOOKED)
        except (redis.RedisError, OperationalError, VirtvaultError, OSError) as error:
            self._unsure = True
            if not self._told_away:
                log.warning("nothing is scheduled now: %s", error)
            self._told_away = True
            return interval
        except Exception:  # nobody else would schedule
            self._unsure = True
            log.exception("a tick stumbled; the next one follows")
            return interval
        return 0.0 if more and not self.stopping else interval

    def close(self) -> None:
        """Give the lead back, so that another beat need not wait; release connections."""
        try:
            self._leadership.release()
        except redis.RedisError as error:
            log.info("another beat leads once ours has run out: %s", error)
        super().close()

    # -- one tick -----------------------------------------------------------------------------

    def _round(self, now: float) -> bool:
        view = self.board.view
        view.look()
        unbroken = self._leadership.unbroken
        if view.version is None and (answer := self._asking.answer(queues.POLICIES, 0)):
            view.enact(schemas.load(PolicyVersion, answer))
        if self._leadership.hold(now) or not self._led:
            self._take_over(now, unbroken)
        elif self._unsure and self._informed:
            self.board.load()
        self._unsure = False
        self._mind_the_clock(now)
        self._rounds.send(now)
        if not self._informed and not self._inform(now):
            return False
        if not view.complete:
            # Policies may be none; inventories are read piece by piece.
            return view.version is not None
        return self._schedule(now)

    def _schedule(self, now: float) -> bool:
        more = self._planner.plan(now)
        if not 0 <= now - self._strangers_at < STRANGERS:
            self._strangers_at = now
            self.board.adopt(now)
            give_up(self.board, now)
        settle(self.board, now)
        if take_due(self.board, now):
            more = True  # all that is due first: what is begun is chosen among it
        elif now >= self._quiet_until:
            if self.board.lost:
                self.board.adopt(now)
                self.board.send_lost(now)
            more |= dispatch(self.board, self._shown, now)
        self.board.records.deliver(now)
        return more

    def _take_over(self, now: float, unbroken: bool) -> None:
        """Begin to lead: from what Redis has, or where it was flushed from what we had.

        Where another beat may have led since, central is asked first, and memory is what is left
        where it does not answer.
        """
        remembers = self._led and (self._informed or self._trust_memory_at > 0)
        self._trust_memory_at = 0.0
        if self.board.state.whole():
            self.board.load()
            self._informed = True
        elif remembers and unbroken and self._informed:
            self._go_on_from_memory()
        else:
            self._informed = False
            self._asking.forget()
            self._trust_memory_at = now + PATIENCE if remembers else 0.0
        self._led = True
        self._doubt(self.board.state.planned())

    def _inform(self, now: float) -> bool:
        """Learn each entry's last slot from central; gives whether it has answered.

        Workers tell of the runs they hold within the time of a lease: until then nothing begins,
        for it could be one too many.
        """
        answer = self._asking.answer(queues.SCHEDULE_STATE)
        if answer is None and 0 < self._trust_memory_at <= now:
            self._go_on_from_memory()
            return True
        if answer is None:
            return False
        self.board.begin_anew(answer)
        self._informed = True
        if answer:
            self._quiet_until = now + self.settings.lease_seconds
        return True

    def _go_on_from_memory(self) -> None:
        self.board.rewrite()
        self.board.view.look_at_all()
        self._informed, self._trust_memory_at = True, 0.0

    def _mind_the_clock(self, now: float) -> None:
        if now < self._ticked - CLOCK_STEP:
            back = self._ticked - now
            log.warning("the clock went back by %.0f s: all due times are looked at", back)
            self._quiet_until = min(self._quiet_until, now + self.settings.lease_seconds)
            self._doubt([])
        self._ticked = now

    def _doubt(self, uuids: Iterable[str]) -> None:
        """Compare due times with the clock; another beat's may have differed from ours."""
        self.board.view.plan_all(uuids)
        self._planner.doubted.update(self.board.view.changed)
