"""Flower, extended to show the live progress of backups and restores.

Workers send custom ``task-progress`` events. Flower 2.2 would make a *state* ``PROGRESS`` of them,
which hides the Terminate button, escapes the Started filter and outranks REVOKED, and it would
show none of their fields. Three extensions mend that, all through Flower's internals, hence the
pinned version:

- its event state makes :class:`LiveTask`, which takes progress as data of a started task;
- its task list knows the columns of :data:`COLUMNS`;
- its task list shows them by default.

The detail page, ``/api/tasks`` and ``/api/task/info`` go through ``Task._fields`` and need no more.
"""

from __future__ import annotations

import importlib
import ipaddress
import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from celery import Celery, states
from celery.events.state import Task

from tasks import web
from tasks.web import page
from virtvault.errors import InvalidSettings, NotSupported
from virtvault.settings import Settings

__all__ = ["COLUMNS", "TESTED_VERSION", "LiveTask", "extend", "run"]

log = logging.getLogger(__name__)

# The version whose internals these extensions were tested with; pyproject.toml pins it.
TESTED_VERSION = "2.2.0"
# Column slug (also the event's and the task's field) to header.
COLUMNS = {"progress": "Progress", "phase": "Phase", "domain": "Domain", "host": "Host"}
# `received` must be among them: the list opens sorted by it, newest first. The worker's name says
# no more than `host` does, and the phase is on the detail page; FLOWER_TASKS_COLUMNS changes it.
SHOWN = "name,domain,host,state,progress,received,runtime,uuid"
# Seconds from SIGTERM until the process ends, whatever a thread of its waits for.
STOP_GRACE = 1.0


class LiveTask(Task):  # type: ignore[misc]
    """A task of Flower's state that takes ``task-progress`` as data, not as a state."""

    state: str = states.PENDING
    progress: str | None = None
    phase: str | None = None
    domain: str | None = None
    host: str | None = None

    # The detail page shows its rows in this order: what is asked for most comes first.
    _fields = (*COLUMNS, *Task._fields)

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        """Take one event of this task."""
        if type_ == "progress":
            self._sample(timestamp, fields or {})
            return
        super().event(type_, timestamp, local_received, fields, **keywords)
        if self.progress and self.state in states.READY_STATES:
            self._conclude()

    def _conclude(self) -> None:
        # The last sample's rate and time left are no longer true, and a success is complete even
        # where its last sample came before the end. Where a failure stood remains of interest.
        if self.state == states.SUCCESS:
            self.progress, self.phase = "100 %", None
        elif self.progress:
            self.progress = self.progress.partition(" · ")[0]

    def _sample(self, timestamp: float | None, fields: dict[str, Any]) -> None:
        # A sample overtaken by the end of its task must not bring the task back to life.
        if self.state in states.READY_STATES:
            return
        # A Flower started in mid-task has seen neither task-received nor task-started. When it
        # started stays unknown: the sample's time is not it.
        self.state = states.STARTED
        self.timestamp = timestamp
        if fields.get("name"):
            self.name = fields["name"]
        for column in COLUMNS:
            if fields.get(column) is not None:
                setattr(self, column, str(fields[column]))


def extend() -> None:
    """Make this process's Flower show progress. Calling it again changes nothing.

    :raises NotSupported: Flower is not installed, or is a version that lacks what is extended.
    """
    flower = _module("flower")
    version = str(getattr(flower, "__version__", "unknown"))
    if missing := _missing(flower):
        raise NotSupported(
            f"Flower {version} lacks {', '.join(missing)}, through which progress is shown.",
            f"Install the version this was tested with: pip install flower=={TESTED_VERSION}.",
        )
    if version != TESTED_VERSION:
        log.warning("Flower %s is untested here; tested is %s.", version, TESTED_VERSION)
    _module("flower.events").EventsState.Task = LiveTask
    _module("flower.views.tasks").TASK_COLUMNS.update(COLUMNS)


def run(app: Celery, settings: Settings) -> None:
    """Serve Flower for ``app`` until SIGTERM or SIGINT, which end the process.

    Flower's own ``FLOWER_*`` variables hold (``FLOWER_BASIC_AUTH``, ``FLOWER_URL_PREFIX``, …), but
    for address and port, which are virtvault's settings. Without authentication it is read-only,
    and listens on loopback alone.

    :raises NotSupported: see :func:`extend`.
    :raises InvalidSettings: it would be open to strangers, or the address cannot be had.
    """
    extend()
    options = _options(settings)
    server = _module("flower.app").Flower(
        capp=app, options=options, **_module("flower.urls").settings
    )
    server.add_handlers(".*", [*_closed(options), *web.routes(settings)])
    page.link(server)
    try:
        port = server.start_http_server()
    except OSError as error:
        raise InvalidSettings(
            f"Flower cannot listen on {options.address}:{options.port}: {error.strerror}.",
            "Set flower_address and flower_port to an address of this host that is free.",
        ) from error
    log.info("Flower serves http://%s:%s%s", options.address, port, _mode(options))
    _stop_at_signals(server.io_loop)
    server.start()
    server.stop()
    _end_soon()


def _options(settings: Settings) -> Any:
    """Flower's options: its variables, and over them what must be so here."""
    command = _module("flower.command")
    options = _module("flower.options").options
    options.tasks_columns = SHOWN
    command.apply_env_options()
    options.address = settings.flower_address
    options.port = settings.flower_port
    # Our workers send events anyway; else Flower would broadcast to all of them every 5 s.
    options.enable_events = False
    if options.basic_auth:
        # `user:password,` and an empty variable make one more, which opens Flower to everybody.
        options.basic_auth = [one for one in options.basic_auth if one.strip(" :")]
    authenticated = bool(options.basic_auth or options.auth)
    _refuse_strangers(options.address, authenticated)
    if not authenticated:
        # The buttons would only answer 401: Flower opens its API to authenticated users alone.
        options.read_only = True
    command.extract_settings()
    command.setup_logging()
    return options


def _refuse_strangers(address: str, authenticated: bool) -> None:
    if authenticated:
        return
    if os.environ.get("FLOWER_UNAUTHENTICATED_API", "").lower() not in ("", "0", "false", "no"):
        raise InvalidSettings(
            "FLOWER_UNAUTHENTICATED_API is set: any web page that is open in a browser on this"
            " host could then enqueue and end tasks.",
            "Unset it, and set FLOWER_BASIC_AUTH=user:password to use Flower's buttons and API.",
        )
    if not _is_loopback(address):
        raise InvalidSettings(
            f"flower_address {address!r} is not loopback, and Flower has no authentication.",
            "Set FLOWER_BASIC_AUTH=user:password, or flower_address to 127.0.0.1.",
        )


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _closed(options: Any) -> list[Any]:
    """What stands before those routes of Flower's that must not be reached from elsewhere."""
    closed = _module("tasks.web.closed")
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    routes: list[Any] = []
    if not (options.basic_auth or options.auth):
        routes += closed.to_other_names(prefix, _is_loopback)
    if not _is_loopback(options.address):
        routes += closed.routes(prefix)
    return routes


def _mode(options: Any) -> str:
    return " (read-only: FLOWER_BASIC_AUTH is not set)" if options.read_only else ""


def _module(name: str) -> ModuleType:
    """A module of Flower's, imported late: only the central role has it installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotSupported(
            f"Flower cannot be imported: {error}.",
            f"Install it: pip install 'virtvault[central]', or flower=={TESTED_VERSION}.",
        ) from error


def _missing(flower: ModuleType) -> list[str]:
    """The internals this rests on that are not there."""
    missing = []
    if not hasattr(getattr(_module("flower.events"), "EventsState", None), "Task"):
        missing.append("flower.events.EventsState.Task")
    if not isinstance(getattr(_module("flower.views.tasks"), "TASK_COLUMNS", None), dict):
        missing.append("flower.views.tasks.TASK_COLUMNS")
    for function in ("apply_env_options", "extract_settings", "setup_logging"):
        if not hasattr(_module("flower.command"), function):
            missing.append(f"flower.command.{function}")
    # Older versions list the columns in the script and show an empty cell for any other.
    script = Path(str(flower.__file__)).parent / "static/js/flower.js"
    if not script.is_file() or "headerColumns.map" not in script.read_text():
        missing.append("a task list that takes its columns from the page")
    return missing


def _stop_at_signals(loop: Any) -> None:
    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.asyncio_loop.call_soon_threadsafe(loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def _end_soon() -> None:
    """End the process within the grace time.

    Python waits at its exit for executor threads, and Flower's may hang on a silent Redis for
    longer than an init system has patience. They only ask questions; nothing of theirs is lost.
    """
    timer = threading.Timer(STOP_GRACE, os._exit, (0,))
    timer.daemon = True
    timer.start()
