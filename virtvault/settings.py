"""Settings: a TOML file, then ``VIRTVAULT_*`` variables over it.

``VIRTVAULT_CONFIG`` names the file; otherwise the first that exists of :data:`SEARCH_PATH`.
A variable is the setting's name in capitals (``VIRTVAULT_BROKER_URL``); tables cannot be set so.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from virtvault.errors import InvalidSettings

__all__ = ["NotifySettings", "RepositorySettings", "SEARCH_PATH", "Settings", "find_file", "load"]

DEFAULT_STATE_DIR = "/var/lib/virtvault"
SEARCH_PATH = (
    "/etc/virtvault/virtvault.toml",
    # `virtvault up` writes this one for its own roles.
    f"{DEFAULT_STATE_DIR}/virtvault.toml",
)


@dataclass(frozen=True)
class RepositorySettings:
    """Where points are stored: ``[repositories.NAME]`` with ``path`` and ``type``."""

    name: str
    path: str
    type: str = "directory"


@dataclass(frozen=True)
class NotifySettings:
    """``[notify]``: who is told of failures and missed RPOs, and of recoveries. Central alone.

    ``webhooks`` are URLs that get a JSON document by POST, signed (HMAC-SHA256) with the secret
    in ``webhook_secret_file`` where there is one. E-mail goes to ``email_to`` through ``smtp``
    (``host:port``); the password is in a file. ``repeat`` seconds after the first notice an alert
    that lasts is told again, 0: never. ``email_wait`` seconds are collected into one e-mail.
    """

    webhooks: tuple[str, ...] = ()
    webhook_secret_file: str = ""
    email_to: tuple[str, ...] = ()
    email_from: str = ""
    smtp: str = "localhost:25"
    smtp_starttls: bool = False
    smtp_user: str = ""
    smtp_password_file: str = ""
    repeat: int = 86_400
    email_wait: int = 60


@dataclass(frozen=True)
class Settings:
    """Everything a role needs to know. Each default says why it is what it is."""

    # -- who and where -----------------------------------------------------------------------
    # The name of this hypervisor in queue names and points. One name, one worker.
    host: str = field(default_factory=socket.gethostname)
    # The worker talks to its own libvirt only.
    libvirt_uri: str = "qemu:///system"
    # Journals of runs in flight, the spool, locks, the embedded Redis and catalog.
    state_dir: str = DEFAULT_STATE_DIR
    # Unix sockets: their paths are limited to 107 bytes, so they are not below state_dir.
    runtime_dir: str = "/run/virtvault"

    # -- Celery ------------------------------------------------------------------------------
    # Redis carries tasks and the live view. It may be flushed at any moment.
    broker_url: str = "redis://127.0.0.1:6379/0"
    # Empty: the broker. Any Celery result backend URL (`db+postgresql://…`) does.
    result_backend: str = ""
    # Only `central` opens it; hypervisors hold no database credential.
    catalog_url: str = f"sqlite:///{DEFAULT_STATE_DIR}/catalog.sqlite"
    # Backups and restores at a time on this hypervisor: each is mostly one sleeping thread here,
    # but its jobs share the disks' bandwidth with the guests.
    slots: int = 4
    # Seconds a run stays claimed without a sign of life from its worker. A worker renews it at a
    # third of this; shorter means a faster take-over and more Redis writes.
    lease_seconds: int = 30
    # Seconds between two rounds of the sweep that publishes lost messages again.
    sweep_seconds: int = 10
    # Seconds to wait for an answer on a control queue before the host counts as silent.
    control_timeout: int = 10

    # -- the engine --------------------------------------------------------------------------
    # Seconds for one QMP command. The longest of ours (a transaction over many disks) takes well
    # under one; a QEMU that needs longer is hung.
    qmp_timeout: float = 30.0
    # Seconds between two polls of query-block-jobs: starts at the first, grows to the second
    # while nothing ends. Events wake the poll, so a long interval costs no latency at the end.
    poll_min: float = 0.2
    poll_max: float = 2.0
    # A job without one byte of progress for this many seconds has a dead target: it is failed,
    # the next backup loses nothing. Paused jobs are not counted. The guest's writes go on all
    # the while, but what makes QEMU drain its disks (suspend, snapshot, migration) waits for the
    # target until then, so this is short: a failed incremental is cheaper than a guest that
    # cannot be suspended.
    stall_seconds: int = 60
    # Seconds a guest write may wait for a stalled *scratch* file before the snapshot is given up
    # (QEMU's cbw-timeout). It can happen once per backup; local disks answer in milliseconds.
    cbw_timeout: int = 5
    # Where data that the guest overwrites during a backup is kept. Empty: <state_dir>/scratch.
    scratch_dir: str = ""
    # Bytes one disk's scratch may grow to. Past it the backup fails and the guest goes on.
    scratch_limit: int = 16 * 2**30
    # Seconds the guest agent may take to freeze. Its own fsfreeze can hang on a busy guest.
    freeze_timeout: int = 10
    # Seconds after which the pause guard resumes and thaws a guest whose worker has died.
    guard_seconds: float = 1.5
    # Empty: use all that a QEMU can do. MAJOR.MINOR: use only what that version had, so that the
    # way of an older QEMU can be tried on a newer one, or a new feature that fails here be left.
    qemu_as_of: str = ""
    # Connections per NBD export (qemu-nbd -e): QEMU opens one, tools that look on need the rest.
    nbd_clients: int = 4
    # Compression of images in the repository: "none" or "zstd".
    # none: restores and reads with any tool at disk speed.
    compression: str = "none"

    # -- storage -----------------------------------------------------------------------------
    repositories: Mapping[str, RepositorySettings] = field(default_factory=dict)
    # Empty: the only repository there is.
    default_repository: str = ""
    # Where the images lie that `top` points need below them. A restore opens nothing outside its
    # repository but what lies below one of these, whatever a manifest says.
    backing_roots: tuple[str, ...] = ()
    # A restore writes below one of these, nowhere else, whatever a message says.
    restore_roots: tuple[str, ...] = (f"{DEFAULT_STATE_DIR}/restores",)
    # Block devices below one of these (`/dev/vg0`), and `rbd:POOL` for a pool's images, may be
    # restored to. Empty: none.
    restore_devices: tuple[str, ...] = ()

    # -- Flower ------------------------------------------------------------------------------
    # Loopback: Flower's task API has no authorisation per task.
    flower_address: str = "127.0.0.1"
    flower_port: int = 5555

    # -- the central tier --------------------------------------------------------------------
    # Seconds between two looks of beat at what is due.
    beat_interval: float = 1.0
    # Seconds without a sign of life of the beat that leads until another one does.
    leader_seconds: int = 10
    # Bearer tokens of the REST API (`virtvault token`), hashed. Empty: <state_dir>/tokens.json.
    tokens_file: str = ""
    # Beginnings of the URLs that a submission may name as its callback. Empty: none.
    callback_urls: tuple[str, ...] = ()
    # How long ends of runs and slots stay in the catalog, in days. Points stay while they exist.
    history_days: int = 400
    notify: NotifySettings = NotifySettings()

    @property
    def backend_url(self) -> str:
        """The result backend: as configured, or the broker's Redis."""
        if self.result_backend:
            return self.result_backend
        return self.broker_url

    @property
    def redis_url(self) -> str:
        """The broker's Redis in redis-py's spelling (``unix://`` for a socket)."""
        if self.broker_url.startswith("redis+socket://"):
            path, _, query = self.broker_url.removeprefix("redis+socket://").partition("?")
            return f"unix://{path}?{query.replace('virtual_host', 'db') or 'db=0'}"
        return self.broker_url

    @property
    def tokens(self) -> Path:
        """The file of the REST API's tokens."""
        return Path(self.tokens_file or f"{self.state_dir}/tokens.json")

    @property
    def scratch(self) -> Path:
        """The directory of scratch images."""
        return Path(self.scratch_dir or f"{self.state_dir}/scratch")

    def repository_name(self, wanted: str) -> str:
        """The name of ``wanted``, or of the default where that is empty.

        :raises InvalidSettings: no default can be told.
        """
        if wanted:
            return wanted
        if self.default_repository:
            return self.default_repository
        if len(self.repositories) == 1:
            return next(iter(self.repositories))
        raise InvalidSettings(
            f"No repository was named and {self.host} has {len(self.repositories)} of them.",
            "Name one with --repository, or set default_repository.",
        )


def find_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The settings file in force, or None where there is none."""
    if named := environ.get("VIRTVAULT_CONFIG"):
        return Path(named)
    return next((Path(p) for p in SEARCH_PATH if Path(p).exists()), None)


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    :raises InvalidSettings: the file cannot be read, or a key is unknown or of the wrong type.
    """
    from virtvault import schemas

    path = path or find_file(environ)
    data: dict[str, object] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text())
        except OSError as error:
            raise InvalidSettings(
                f"Cannot read the settings file {path}: {error.strerror}.",
                "Mend its path in VIRTVAULT_CONFIG or --config.",
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSettings(f"{path} is not TOML: {error}.", "Mend that line.") from error
    where = str(path) if path else "environment"
    given = {
        variable.removeprefix("VIRTVAULT_").lower(): text
        for variable, text in environ.items()
        if variable.startswith("VIRTVAULT_") and variable not in _NOT_SETTINGS
    }
    if path and given:
        # What is wrong may be in either.
        where += " with " + ", ".join(f"VIRTVAULT_{key.upper()}" for key in sorted(given))
    data |= given
    settings = schemas.load_settings(data, where)
    if settings.default_repository and settings.default_repository not in settings.repositories:
        raise InvalidSettings(
            f"{where}: default_repository: no repository {settings.default_repository!r}.",
            f"Add [repositories.{settings.default_repository}] with its path.",
        )
    return settings


# The first belongs to the search for the file, the last to the test lab; the others are where
# docs/api.md and the examples have a caller of the REST API keep its address and its token.
_NOT_SETTINGS = frozenset(
    {"VIRTVAULT_CONFIG", "VIRTVAULT_URL", "VIRTVAULT_TOKEN", "VIRTVAULT_LAB_KVM"}
)
