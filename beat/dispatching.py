"""What waits and has room becomes a task on its hypervisor's queue."""

from __future__ import annotations

import json
from dataclasses import replace

from celery import Celery

from beat.board import Board
from beat.entries import Entry, Work
from beat.requests import request
from beat.room import Begin, End, Room
from beat.state import Change
from virtvault import queues, runs
from virtvault.runs import RunRecord

__all__ = ["dispatch"]

# Claims in one step, and in one tick: what comes between is seen in time.
STEP, MOST = 100, 500


def dispatch(board: Board, app: Celery, now: float) -> bool:
    """Begin what may begin, in its order; gives whether there may be more.

    :raises Deposed: another beat leads; what was claimed and not published is swept.
    """
    if not board.waiting.is_time(now):
        return False
    room = Room(board.view.document.limits, board.flights.works.values())
    batch: list[Work] = []
    over = Change()
    begun = 0
    for work, decision in board.waiting.decided(now, room):
        if not isinstance(decision, Begin):
            if isinstance(decision, End):
                over.no_wait(work.entry)
                over.tell(decision.record)
            else:
                over.undecide(work.entry)
                board.lasts.pop(work.entry, None)
            board.waiting.remove([work.entry])
            continue
        batch.append(_in_flight(work, decision, now))
        room.take(batch[-1])
        begun += 1
        if len(batch) == STEP:
            _launch(board, app, batch, now)
            batch = []
        if begun == MOST:
            board.waiting.stirred = True
            break
    board.commit(over)
    _launch(board, app, batch, now)
    return begun == MOST


def _in_flight(work: Work, begin: Begin, now: float) -> Work:
    entry = Entry.parse(work.entry)
    plain = request(begin.policy, entry.kind, entry.uuid, begin.repository)
    return replace(
        work,
        task_id=work.origin.task_id,
        host=begin.place.host,
        domain=begin.place.info.name,
        repository=begin.repository,
        since=now,
        request=json.dumps(plain),
    )


def _launch(board: Board, app: Celery, batch: list[Work], now: float) -> None:
    """Claim, then publish. A task that has a run record already is not sent a second time."""
    changes = []
    for work in batch:
        change = Change(unless=queues.run_key(work.task_id))
        change.run(work.run)
        change.claim(work)
        why = f"Attempt {work.attempt}: {work.why}" if work.attempt > 1 else ""
        change.tell(work.record("dispatched", now, why))
        changes.append(change)
    claimed = board.commit(*changes)
    with app.producer_or_acquire() as producer:
        for work, ours in zip(batch, claimed, strict=True):
            board.waiting.remove([work.entry])
            if ours:
                board.flights.works[work.entry] = work
        for work, ours in zip(batch, claimed, strict=True):
            if ours:
                runs.publish(app, work.run, producer)
            else:
                _known_already(board, work)


def _known_already(board: Board, work: Work) -> None:
    """The clock was set back, or Redis was flushed and the worker has told of its run since."""
    run = RunRecord.read(board.state.client, work.task_id)
    change = Change()
    if run is not None and run.state != "ended":
        change.claim(work)
        board.flights.works[work.entry] = work
    else:
        change.no_wait(work.entry)
    board.commit(change)
