"""An entry that is due: its slot waits from now on, or is told to have been skipped."""

from __future__ import annotations

from dataclasses import replace

from beat import entries
from beat.board import Board
from beat.due import window
from beat.entries import Entry, Slot, Work
from beat.state import Change
from virtvault.models import Schedule

__all__ = ["take_due"]

# Entries that are taken up in one step.
STEP = 500
# Seconds until an entry that nothing is known of is looked at again; the planner removes it first.
UNKNOWN = 10.0


def take_due(board: Board, now: float) -> bool:
    """Take up what is due, a step's worth; gives whether there may be more.

    :raises Deposed: another beat leads.
    """
    found = board.state.due(now, STEP)
    change = Change()
    taken: list[Work] = []
    for name, since in found:
        taken += _take(board, change, Entry.parse(name), since, now)
    board.commit(change)
    for work in taken:
        board.lasts[work.entry] = (work.slot, board.lasts.get(work.entry, (0.0, 0.0))[1])
        if work.entry not in board.flights.works:
            board.waiting.put(work)
    return len(found) == STEP


def _take(board: Board, change: Change, entry: Entry, since: float, now: float) -> list[Work]:
    """``since`` is when it was due first and nobody looked."""
    name = str(entry)
    schedule, policy = board.view.schedule(entry), board.view.policy(entry.policy)
    if schedule is None or policy is None or not board.view.hosts(entry.uuid):
        board.view.changed[entry.uuid] = None
        change.due(name, now + UNKNOWN)
        return []
    change.due(name, entries.upcoming(schedule, entry.uuid, now).at)
    last, good = board.lasts.get(name, (0.0, 0.0))
    slot = _slot(schedule, entry, last, since, now)
    if slot.slot == last:
        return []  # the clock was set back, or another beat's differs from ours
    change.last(name, slot.slot, good)
    deadline = entries.deadline(policy, entry.kind, slot.at, good)
    # A slot that is missed or skipped is told with the domain's name, too.
    place = board.view.place(entry.uuid)
    called = place.info.name if place else ""
    work = Work(
        *(name, slot.slot, slot.at, slot.closes), begin=slot.at, deadline=deadline, domain=called
    )
    _tell_missed(change, work, schedule, since, now)
    if (flight := board.flights.works.get(name)) is not None:
        why = f"The previous run, task {flight.task_id} on {flight.host}, was still at work."
        change.tell(work.record("skipped", now, why))
        return [work]
    if (before := board.waiting.works.get(name)) is not None:
        held = board.waiting.why.get(name)
        why = "A later slot took its place" + (f"; {held}." if held else ".")
        change.tell(before.over(now, why))
    change.wait(work)
    return [work]


def _slot(schedule: Schedule, entry: Entry, last: float, since: float, now: float) -> Slot:
    slot = entries.latest(schedule, entry.uuid, now)
    if not last and slot.at < since:
        # Its first backup, ahead of the schedule.
        return Slot(since, since, since + window(schedule))
    return slot


def _tell_missed(change: Change, work: Work, schedule: Schedule, since: float, now: float) -> None:
    """One run catches up, whatever the number of slots that have passed."""
    if since >= work.at:
        return
    uuid = Entry.parse(work.entry).uuid
    count, last = entries.missed(schedule, uuid, since, work.at)
    if count:
        many = f"{count}{' or more' if count >= entries.COUNTED else ''}"
        why = (
            "No beat ran at this slot, or its policy or domain was not there; with those before "
            f"it {many} were missed, and one later runs for all."
        )
        change.tell(replace(work, slot=last).record("missed", now, why))
