"""What central does again and again, driven by the beat that leads."""

from __future__ import annotations

from celery import Celery

from virtvault import queues
from virtvault.settings import Settings

__all__ = ["Rounds"]

# Seconds between two looks at freshness and alerts.
WATCH = 15.0
CLEANUP = 86_400.0


class Rounds:
    """A round that was not run in time is not worth two: each message is void after its time."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._every = {queues.SWEEP: float(settings.sweep_seconds), queues.WATCH: WATCH}
        if app.conf.result_expires and not app.backend.supports_autoexpire:
            self._every["celery.backend_cleanup"] = CLEANUP
        self._sent: dict[str, float] = {}

    def send(self, now: float) -> None:
        """Send what is due."""
        for task, every in self._every.items():
            if not 0 <= now - self._sent.get(task, -every) < every:
                self._app.send_task(task, queue=queues.CENTRAL, expires=every, retry=False)
                self._sent[task] = now
