"""The Celery apps of the roles, each setting with its reason.

Early acknowledgement everywhere: a late one re-runs long tasks after the visibility timeout or a
dropped connection, and crashes the worker at a Redis restart. What early acknowledgement can
lose, the sweep publishes again (:mod:`tasks.sweep`).
"""

from __future__ import annotations

import logging

from celery import Celery
from kombu.entity import Queue

from virtvault import queues
from virtvault.celery_app import new_app
from virtvault.settings import Settings

__all__ = ["central_app", "consume", "control_app", "hypervisor_app"]


def hypervisor_app(settings: Settings) -> Celery:
    """The app of a hypervisor's long work."""
    return _consumer(settings, queues.host_queue(settings.host), settings.slots)


def control_app(settings: Settings) -> Celery:
    """The app of a hypervisor's short questions: a consumer of its own, never behind a backup."""
    return _consumer(settings, queues.control_queue(settings.host), 4)


def central_app(settings: Settings) -> Celery:
    """The app of the central worker: recording and sweeping."""
    app = _consumer(settings, queues.CENTRAL, 4)
    # Its tasks take milliseconds. Without prefetch Celery looks for the next message once a second
    # when all threads were busy: 4 records a second, and a fleet's night has 150 000.
    app.conf.update(worker_disable_prefetch=False, worker_prefetch_multiplier=16)
    # What was prefetched by a central worker that was killed comes back soon; twice is harmless.
    app.conf.broker_transport_options["visibility_timeout"] = 60
    return app


def _consumer(settings: Settings, queue: str, threads: int) -> Celery:
    app = new_app(settings)
    # The consumer's signals and tasks look for the current app.
    app.set_current()
    app.conf.update(
        task_queues=[Queue(queue)],  # type: ignore[no-untyped-call]
        # Threads: the work sleeps on libvirt and QMP, whose calls release the GIL; a fork would
        # break the libvirt connection, and threads are told of a shutdown at once.
        worker_pool="threads",
        worker_concurrency=threads,
        task_acks_late=False,
        # A message is taken when a thread is free for it, so none waits behind a long backup
        # while another worker could see it, and none is stranded by a restart.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # A Redis restart is nothing to a backup.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Our own format and file; a library does not take over the process' logging.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Start-up finds nobody to ask on a single host, and asking a fleet is a storm.
        worker_enable_remote_control=True,
        broker_transport_options={
            # Per queue: with shared keys every host could read and requeue everyone's messages.
            "unacked_key": f"unacked.{queue}",
            "unacked_index_key": f"unacked_index.{queue}",
            "unacked_mutex_key": f"unacked_mutex.{queue}",
            "visibility_timeout": 3600,
            # Seconds of one blocking pop: also how long a shutdown may take.
            "polling_interval": 1,
            "socket_timeout": 30,
            "health_check_interval": 25,
        },
    )
    return app


def consume(app: Celery, role: str, given: Settings, *, quiet: bool = False) -> None:
    """Run a role's consumer until it is told to stop.

    ``quiet``: of its tasks the log says only what is wrong. Questions come many a minute, and
    each would be two lines, the second with the whole answer.
    """
    if quiet:
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)
    app.worker_main(
        [
            "worker",
            f"--hostname={role}@{given.host}",
            "--loglevel=INFO",
            # Few connections and no storm at start: hosts have nothing to tell each other.
            "--without-mingle",
            "--without-gossip",
            "--heartbeat-interval=30",
        ]
    )
