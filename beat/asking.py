"""Questions to central in side threads: a tick never waits for an answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from virtvault import queues
from virtvault.connection import Connection
from virtvault.settings import Settings

__all__ = ["Asking", "ask_central"]

log = logging.getLogger(__name__)

# Seconds until a question without an answer is asked again.
AGAIN = 5.0


class Asking:
    """Asks, and keeps each answer until it is fetched."""

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self._asked: dict[str, float] = {}
        self._answers: dict[str, Any] = {}
        self._since = 0

    def forget(self) -> None:
        """What was asked until now is not to be answered any more: it would be of the past."""
        self._since += 1
        self._asked, self._answers = {}, {}

    def answer(self, task: str, *arguments: Any) -> Any:
        """The answer, once; None where there is none yet. Asks where that is to be done."""
        if task in self._answers:
            return self._answers.pop(task)
        if time.monotonic() - self._asked.get(task, -AGAIN) >= AGAIN:
            self._asked[task] = float("inf")
            arguments = (self._since, task, *arguments)
            threading.Thread(target=self._run, args=arguments, daemon=True).start()
        return None

    def _run(self, since: int, task: str, *arguments: Any) -> None:
        answer = None
        try:
            answer = self._ask(task, *arguments)
        except Exception as error:  # central or Redis away in any of kombu's ways: asked again
            log.info("central does not answer %s: %s", task, error)
        if since == self._since:
            self._asked[task] = time.monotonic()
            if answer is not None:
                self._answers[task] = answer


def ask_central(settings: Settings) -> Callable[..., Any]:
    """Questions through Redis, each on a connection of its own."""

    def ask(task: str, *arguments: Any) -> Any:
        with Connection(settings) as connection:
            return connection._question(queues.CENTRAL, task, *arguments)

    return ask
