"""The Celery app that every role and client shares: wire format and delivery, each with its reason.

Roles add what they alone need in :mod:`tasks.app`.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

from virtvault.settings import Settings

__all__ = ["client_app", "new_app"]


def new_app(settings: Settings) -> Celery:
    """An app with the settings that all sides must agree on."""
    app = Celery("virtvault", set_as_current=False)
    polled = "virtvault.result_backend:PolledRedisBackend"
    app.loader.override_backends = {"redis": polled, "rediss": polled}
    app.conf.update(_shared(settings))
    return app


def _shared(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.broker_url,
        "result_backend": settings.backend_url,
        # JSON only: a message is data, it never becomes code.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "enable_utc": True,
        # Flower and `virtvault task` show what runs, not only what ended.
        "task_track_started": True,
        "worker_send_task_events": True,
        # Name, arguments, worker and queue beside the result. Arguments hold no secrets.
        "result_extended": True,
        # Seconds. Points are recorded in the catalog; results are for who waits.
        "result_expires": 7 * 86400,
        # A result that meets a Redis restart is tried again, not lost; 50 tries are minutes.
        "result_backend_always_retry": True,
        "result_backend_max_retries": 50,
        # Seconds. A frozen Redis must not hold a caller for the default of two minutes.
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": 5,
        # Unix sockets have no keep-alive.
        "redis_socket_keepalive": not settings.broker_url.startswith("redis+socket"),
        "redis_retry_on_timeout": True,
        # Roles start in any order and outlive their broker's restarts.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        # A misspelt host would otherwise get a queue that nobody reads; the client checks hosts.
        "task_default_queue": "central",
    }


def client_app(settings: Settings, *, shown: bool = True) -> Celery:
    """An app that sends and waits, and knows no task bodies.

    ``shown``: Flower lists what it sends from the moment of sending; not so short questions.
    """
    app = new_app(settings)
    app.conf.update(
        task_send_sent_event=shown,
        # A caller is told within seconds that Redis is away, and is not left to hang.
        broker_transport_options={"socket_timeout": 10, "socket_connect_timeout": 5},
        task_publish_retry=False,
    )
    return app
