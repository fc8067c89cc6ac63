"""The times of a cron expression on a clock that is changed twice a year.

Each time that the clock should show is run once: one that it shows twice at the first, one that it
jumps over at the moment of the jump; several that one jump skips make one run. But where the hour
is ``*`` the runs go on as time does: ``*/15 * * * *`` in both of the hours that the clock shows
twice, and with neither a pause nor a burst where it skips one.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

__all__ = ["Clock"]

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
# More than any clock is set back.
SET_BACK = timedelta(days=1)


class Clock:
    """A cron expression in a zone. Instants in and out are aware, UTC."""

    def __init__(self, expression: str, timezone: str) -> None:
        self._zone = ZoneInfo(timezone)
        # Parsed once. Without a zone: what the clock should show, not what its changes make of it.
        self._forward = CronSim(expression, datetime(2000, 1, 1))
        self._backward = CronSim(expression, datetime(2000, 1, 1), reverse=True)
        self._runs_on = len(self._forward.hours) == 24

    def after(self, instant: datetime) -> datetime:
        """The first slot later than ``instant``."""
        times = _times(self._forward, self._shown(instant))
        if not self._runs_on:
            return next(slot for slot in map(self._first, times) if slot > instant)
        shown = next(times)
        slot = _instant(shown, self._offset(instant))
        change = self._change(instant, slot)
        if change is None:
            return slot
        if self._jumped_over(shown, change):
            return change
        again = next(_times(self._forward, self._shown(change) - SECOND))
        return _instant(again, self._offset(change))

    def last(self, instant: datetime) -> datetime:
        """The last slot at ``instant`` or before."""
        if not self._runs_on:
            # Shown a second time, it is later than all that was to be shown until now.
            until = self._shown(instant) + (SET_BACK if self._second_time(instant) else SECOND)
            times = _times(self._backward, until)
            return next(slot for slot in map(self._first, times) if slot <= instant)
        shown = next(_times(self._backward, self._shown(instant) + SECOND))
        slot = _instant(shown, self._offset(instant))
        change = self._change(slot, instant)
        if change is None:
            return slot
        if self._jumped_over(shown, change):
            return change
        before = self._offset(change - SECOND)
        again = next(_times(self._backward, _show(change, before)))
        return _instant(again, before)

    # -- the zone's clock ---------------------------------------------------------------------

    def _shown(self, instant: datetime) -> datetime:
        return instant.astimezone(self._zone).replace(tzinfo=None, fold=0)

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self._zone).utcoffset() or timedelta()

    def _second_time(self, instant: datetime) -> bool:
        return bool(instant.astimezone(self._zone).fold)

    def _first(self, shown: datetime) -> datetime:
        """When the clock first shows a time, or jumps over it."""
        instant = shown.replace(tzinfo=self._zone).astimezone(UTC)
        if self._shown(instant) == shown:
            return instant
        # By the offset before the jump it is after it, by the one since then before.
        early = shown.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        return self._change(early, instant) or instant

    def _change(self, early: datetime, late: datetime) -> datetime | None:
        """The moment of the change, where the clock differs between two instants."""
        before = self._offset(early)
        if self._offset(late) == before:
            return None
        while late - early > SECOND:
            middle = early + (late - early) // 2
            if self._offset(middle) == before:
                early = middle
            else:
                late = middle
        return late.replace(microsecond=0)

    def _jumped_over(self, shown: datetime, change: datetime) -> bool:
        """Whether a change skips a time that no other hour makes up for.

        Where a whole hour is skipped the next one has the same minutes; half an hour may have had
        an hour's only run.
        """
        before, since = self._offset(change - SECOND), self._offset(change)
        skipped = _show(change, before) <= shown < _show(change, since)
        return skipped and bool((since - before) % HOUR)


def _times(sim: CronSim, start: datetime) -> Iterator[datetime]:
    """The times after (or before) one, none of them that one itself."""
    begun = copy(sim)
    begun.dt = start.replace(microsecond=0)
    return begun


def _show(instant: datetime, offset: timedelta) -> datetime:
    return (instant + offset).replace(tzinfo=None)


def _instant(shown: datetime, offset: timedelta) -> datetime:
    return (shown - offset).replace(tzinfo=UTC)
