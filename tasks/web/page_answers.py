"""Answers that are shared: fifty open browsers cost central one question."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from virtvault.errors import NotReachable, VirtvaultError, WorkFailed
from virtvault.moments import written

__all__ = ["Answer", "Answers", "stamp"]

log = logging.getLogger(__name__)

# An answer that took long is kept for so many times as long: the page costs central, and this
# process, a tenth of a core at most, however many domains there are.
COST_FACTOR = 10.0
# Seconds during which nothing new is asked of who did not answer: those who wait for one
# question that will time out are told together, and no thread waits for the next.
SILENCE = 2.0
# Answers kept. Each domain that somebody looks at is one; the oldest go.
KEPT = 200


def stamp(moment: datetime | None = None) -> str:
    """A moment (default: now) as the models write it: UTC, to the millisecond, with ``Z``."""
    return written(moment or datetime.now(UTC))


@dataclass
class Answer:
    """What is known: ``value`` as it was ``at`` (UTC), and why nothing newer is, else None.

    ``value`` is None and ``at`` empty where there never was one.
    """

    value: Any = None
    at: str = ""
    trouble: VirtvaultError | None = None
    # time.monotonic() until which it is good enough.
    until: float = 0.0
    asking: asyncio.Task[None] | None = field(default=None, repr=False)


class Answers:
    """Asks in threads and keeps what was answered. All its methods belong to one event loop."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._kept: OrderedDict[str, Answer] = OrderedDict()
        self._silent: NotReachable | None = None
        self._silent_until = 0.0

    async def get(
        self, key: str, ask: Callable[[], Any], seconds: float, factor: float = COST_FACTOR
    ) -> Answer:
        """The answer kept under ``key``, asked again where it is older than ``seconds``.

        It is kept ``factor`` times as long as it took, where that is longer.

        With trouble the last value stays, under the time it is of.
        """
        answer = self._kept.setdefault(key, Answer())
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        if time.monotonic() < answer.until:
            return answer
        if answer.asking is None:
            if time.monotonic() < self._silent_until:
                answer.trouble = self._silent
                return answer
            answer.asking = asyncio.ensure_future(self._ask(answer, ask, seconds, factor))
        # A viewer that goes away must not end the question for the others.
        await asyncio.shield(answer.asking)
        return answer

    def last(self, key: str) -> Any:
        """What was last answered under ``key``, of whatever age; None where nothing was."""
        answer = self._kept.get(key)
        return answer.value if answer else None

    async def _ask(
        self, answer: Answer, ask: Callable[[], Any], seconds: float, factor: float
    ) -> None:
        began, at = time.monotonic(), stamp()
        loop = asyncio.get_running_loop()
        try:
            answer.value = await loop.run_in_executor(self._threads, ask)
            answer.at, answer.trouble = at, None
        except VirtvaultError as error:
            answer.trouble = error
        except Exception as error:
            log.exception("the Backups page could not be answered")
            answer.trouble = WorkFailed(
                f"The answer could not be read: {type(error).__name__}.",
                "See Flower's log; are central and Flower of the same version?",
            )
        finally:
            answer.asking = None
        ended = time.monotonic()
        if isinstance(answer.trouble, NotReachable):
            self._silent, self._silent_until = answer.trouble, ended + SILENCE
            seconds = SILENCE
        else:
            seconds = max(seconds, factor * (ended - began))
        answer.until = ended + seconds
