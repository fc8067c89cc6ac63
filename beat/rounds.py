"""What central does again and again, driven by the beat that leads."""

from __future__ import annotations

import redis
from celery import Celery

from virtvault import queues
from virtvault.settings import Settings

__all__ = ["Rounds"]

# Seconds between two looks at freshness and alerts.
WATCH = 15.0
CLEANUP = 86_400.0
# Seconds after which a round that central has not begun is sent once more: it may be lost.
WAITING = 300


class Rounds:
    """A round that was not run in time is not worth two: none is sent while one waits.

    Not by messages that are void after some seconds: central's clock may be ahead of ours.
    """

    def __init__(self, app: Celery, client: redis.Redis, settings: Settings) -> None:
        self._app = app
        self._client = client
        self._every = {queues.SWEEP: float(settings.sweep_seconds), queues.WATCH: WATCH}
        if app.conf.result_expires and not app.backend.supports_autoexpire:
            self._every["celery.backend_cleanup"] = CLEANUP
        self._sent: dict[str, float] = {}

    def send(self, now: float) -> None:
        """Send what is due."""
        for task, every in self._every.items():
            if not 0 <= now - self._sent.get(task, -every) < every:
                if self._client.set(queues.round_key(task), "1", nx=True, ex=WAITING):
                    self._send(task)
                self._sent[task] = now

    def _send(self, task: str) -> None:
        try:
            self._app.send_task(task, queue=queues.CENTRAL, retry=False)
        except Exception:
            self._client.delete(queues.round_key(task))
            raise
