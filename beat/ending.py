"""How dispatched tasks ended: well, to be tried again, or for good."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from beat import entries
from beat.board import Board
from beat.entries import Work
from beat.flights import GONE
from beat.state import Change
from virtvault.errors import DomainBusy, VirtvaultError

__all__ = ["give_up", "settle"]

log = logging.getLogger(__name__)


def settle(board: Board, now: float) -> None:
    """See which tasks have ended, and how.

    :raises Deposed: another beat leads.
    """
    change, landed, again = Change(), [], []
    goods: dict[str, tuple[float, float]] = {}
    for work, meta in board.flights.ended():
        landed.append(work)
        change.run(replace(work.run, state="ended"))
        change.land(work.entry)
        if meta["status"] == "SUCCESS":
            slot, _ = board.lasts.get(work.entry, (work.slot, 0.0))
            goods[work.entry] = (slot, _good(work, meta["result"]))
            change.last(work.entry, *goods[work.entry])
        elif meta["status"] == "FAILURE":
            again += _failed(change, work, meta["result"], now)
    board.commit(change)
    board.lasts.update(goods)
    for work in landed:
        del board.flights.works[work.entry]
        board.waiting.stirred = True
    for work in again:
        board.waiting.put(work)


def give_up(board: Board, now: float) -> None:
    """Count the runs of a hypervisor that is gone for long no more; their slots have failed.

    Their run records stay open: the hypervisor goes on with them when it is back, and they are
    counted again from then on.

    :raises Deposed: another beat leads.
    """
    change = Change()
    abandoned = board.flights.abandoned(now)
    for work in abandoned:
        change.land(work.entry)
        why = f"Hypervisor {work.host} was not heard of for {GONE / 60:.0f} minutes"
        change.tell(work.record("failed", now, f"{why}; how its task ended is not known."))
    untold = [work for work in board.flights.untold(now) if work not in abandoned]
    for work in untold:
        # Its run has told the catalog how it ended.
        log.warning("task %s has ended, and its result is gone", work.task_id)
        change.land(work.entry)
    board.commit(change)
    for work in abandoned + untold:
        del board.flights.works[work.entry]
        board.waiting.stirred = True


def _good(work: Work, result: Any) -> float:
    try:
        return entries.instant(result["instant"])
    except (TypeError, KeyError, AttributeError, ValueError):
        return work.since  # of other work, or another version's: one result stops no beat


def _failed(change: Change, work: Work, error: Any, now: float) -> list[Work]:
    """Again within the window, where that may help; a bug of ours or a dead worker may, too."""
    why = error.message if isinstance(error, VirtvaultError) else f"{error!r}."
    later = work.again(now + entries.backoff(work), why, isinstance(error, DomainBusy))
    retryable = error.retryable if isinstance(error, VirtvaultError) else True
    if retryable and later.begin < work.closes:
        change.wait(later)
        log.info(
            "again, as attempt %d from %s on: %s; task %s: %s",
            later.attempt,
            entries.moment(later.begin),
            work.entry,
            work.task_id,
            why,
        )
        return [later]
    change.tell(later.over(now, "The window has ended." if retryable else ""))
    return []
