"""The two roles of a hypervisor, and the housekeeping of its worker.

Imported by these roles alone: beat, central and Flower run where there is no libvirt.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

import redis
from celery import Celery, signals

from tasks import control, events, revocation, work
from tasks.app import consume, control_app, hypervisor_app
from tasks.inventory import HEARTBEAT, Teller
from tasks.spool import Spool
from virtvault import queues, runs
from virtvault.settings import Settings
from workers import recovery
from workers.engine import Engine
from workers.journal import Run

__all__ = ["run_control", "run_worker"]

log = logging.getLogger(__name__)


def run_worker(given: Settings) -> None:
    """A hypervisor's long work."""
    app, engine, client = hypervisor_app(given), Engine.of(given), runs.connect(given)
    stopping = threading.Event()
    spool = Spool(app, given.state_dir, client)
    teller = Teller(given, client, spool, stopping)
    work.register(app, engine, client, spool, stopping)
    revocation.obey(app, engine, client)

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def detach(**_: Any) -> None:
        # SIGTERM: tasks let go of their jobs at once; QEMU goes on with them.
        stopping.set()

    @signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def ready(**_: Any) -> None:
        teller.start()
        threading.Thread(
            target=_keep_house,
            args=(app, engine, client, spool, teller, stopping),
            name="housekeeping",
            daemon=True,
        ).start()

    consume(app, "worker", given)


def run_control(given: Settings) -> None:
    """A hypervisor's questions and job control."""
    # Who asks waits for control_timeout: a QEMU that hangs must not use all of it up.
    given = replace(given, qmp_timeout=min(given.qmp_timeout, given.control_timeout / 3))
    app, engine = control_app(given), Engine.of(given)
    # The worker's spool: what is not delivered from here is delivered by its housekeeping.
    client = runs.connect(given)
    control.register(app, engine, Spool(app, given.state_dir, client))
    revocation.obey(app, engine, client)
    # Here, not in the worker: events are heard while that one is stopped or being upgraded.
    events.watch(given)
    consume(app, "control", given, quiet=True)


def _keep_house(
    app: Celery,
    engine: Engine,
    client: redis.Redis,
    spool: Spool,
    teller: Teller,
    stopping: threading.Event,
) -> None:
    """Take up what an earlier worker left, then tidy and deliver until the end."""
    pending = engine.journal.all()
    rounds = 0
    while not stopping.is_set():
        try:
            pending = [run for run in pending if not _taken_up(app, client, run)]
            teller.record()
            spool.deliver()
            if rounds % 6 == 0:
                recovery.tidy(engine)
        except Exception:  # must outlive anything: without it nothing is delivered
            log.exception("housekeeping stumbled; next round in %d s", HEARTBEAT)
        rounds += 1
        stopping.wait(HEARTBEAT)


def _taken_up(app: Celery, client: redis.Redis, run: Run) -> bool:
    """Publish a run found in the journal again: the same task goes on with the same point."""
    if run.error:
        return True  # it failed; what is left to undo is tidied
    task = f"virtvault.{run.kind}"
    host = app.conf.task_queues[0].name.removeprefix("hv.")
    record = runs.new_record(run.task_id, task, queues.host_queue(host), host, run.request)
    try:
        record.write(client)
        runs.publish(app, record)
    except Exception as error:
        log.info("run %s is taken up later: %s", run.task_id, error)
        return False
    log.info("run %s (%s of %s) is taken up again", run.task_id, run.kind, run.domain)
    return True
