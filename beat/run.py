"""Celery beat with our schedule."""

from __future__ import annotations

from pathlib import Path

from tasks.app import central_app
from virtvault import queues
from virtvault.settings import Settings

__all__ = ["run"]


def run(settings: Settings) -> None:
    """Run beat in the foreground until it is told to stop."""
    state = Path(settings.state_dir, "beat")
    state.mkdir(parents=True, exist_ok=True)
    app = central_app(settings)
    app.conf.beat_schedule = {
        "sweep": {
            "task": queues.SWEEP,
            "schedule": settings.sweep_seconds,
            # A round that was not run in time is not worth two.
            "options": {"queue": queues.CENTRAL, "expires": settings.sweep_seconds},
        }
    }
    app.Beat(
        schedule=str(state / "schedule"),
        max_interval=settings.sweep_seconds,
        loglevel="INFO",
        quiet=True,
    ).run()
