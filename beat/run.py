"""Celery beat with our scheduler."""

from __future__ import annotations

import functools
import signal
from types import FrameType

from celery import beat
from celery.apps.beat import Beat

from beat.scheduler import PolicyScheduler
from virtvault.celery_app import client_app
from virtvault.settings import Settings

__all__ = ["run"]


class _Beat(Beat):  # type: ignore[misc]
    def install_sync_handler(self, service: beat.Service) -> None:
        """SIGTERM ends beat between two steps: what was claimed is published, too."""

        def stop(number: int, frame: FrameType | None) -> None:
            if service.scheduler.stopping:
                raise SystemExit
            service.scheduler.stopping = True
            service.stop()

        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, stop)


def run(settings: Settings) -> None:
    """Run beat in the foreground until it is told to stop. Several may run: one leads."""
    app = client_app(settings, shown=False)
    _Beat(
        app=app,
        scheduler_cls=functools.partial(PolicyScheduler, settings=settings),
        max_interval=settings.beat_interval,
        loglevel="INFO",
        quiet=True,
    ).run()
