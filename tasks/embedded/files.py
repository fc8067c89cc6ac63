"""What `up` writes: settings once, Redis's and supervisord's configuration each time."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from virtvault import settings
from virtvault.errors import InvalidSettings
from virtvault.settings import Settings

__all__ = ["Choices", "log_dir", "prepare", "write_supervisord"]

CONFIG_NAME = "virtvault.toml"
SUPERVISORD_NAME = "supervisord.conf"
ROLES = ("central", "worker", "control", "beat", "flower")
REDIS = "redis"

# Redis and supervisord each quote in a way of their own; what needs no quotes suits both.
PLAIN_PATH = re.compile(r"/[\w/.@+,=-]*\Z", re.ASCII)

SETTINGS_FILE = """\
# Written by `virtvault up` at its first start; yours to edit from then on.
state_dir = {state_dir}
# Unix sockets. Short, because the path of a socket holds 107 bytes.
runtime_dir = {runtime_dir}
broker_url = {broker_url}
catalog_url = {catalog_url}
libvirt_uri = {libvirt_uri}
flower_port = {flower_port}
# Everywhere: only root reaches the private Redis, so who can ask for a restore could write there
# anyway. Narrow it down before you share the Redis with other hosts.
restore_roots = ["/"]

[repositories.local]
path = {repository}
"""

REDIS_FILE = """\
# Written by `virtvault up` at each start: changes are lost.
port 0
unixsocket {socket}
unixsocketperm 700
dir {data}
# Tasks and results outlive a restart of Redis; at a power cut a second's worth is published again.
appendonly yes
appendfsync everysec
save ""
# Full memory must be an error for who writes, not silently lost tasks.
maxmemory-policy noeviction
"""

SUPERVISORD_FILE = """\
; Written by `virtvault up` at each start: changes are lost.
[supervisord]
user={user}
directory={state_dir}
pidfile={runtime_dir}/supervisord.pid
logfile={log}/supervisord.log
logfile_maxbytes=10MB
logfile_backups=3
environment=VIRTVAULT_CONFIG="{config}"

[unix_http_server]
file={runtime_dir}/supervisor.sock
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

# setpriv: should supervisord be killed, its programs end as well, and no second Redis is ever
# started beside the first on the same files.
# stopasgroup, killasgroup: the exports of a running backup must outlive their worker.
# startsecs: a role that cannot work ends within its first seconds, when it has loaded.
# priority: Redis starts first and, the order being reversed, ends last.
PROGRAM = """
[program:{name}]
command=setpriv --pdeathsig TERM -- {command}
priority={priority}
autorestart=true
startretries=1000000
startsecs={seconds}
stopwaitsecs=30
stopasgroup=false
killasgroup=false
redirect_stderr=true
stdout_logfile={log}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=5
"""


@dataclass(frozen=True)
class Choices:
    """The command line of `up`; None where an option was not given."""

    state_dir: Path
    libvirt_uri: str | None = None
    repository: str | None = None
    flower_port: int | None = None

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.state_dir / CONFIG_NAME


def log_dir(given: Settings) -> Path:
    """Where the programs' logs are."""
    return Path(given.state_dir, "log")


def prepare(choices: Choices) -> Settings:
    """Make the directories, the settings file if there is none, and Redis's configuration.

    :raises InvalidSettings: the file that is there contradicts an option, or cannot be embedded.
    """
    state_dir = choices.state_dir
    _require_plain("--state-dir", str(state_dir))
    # Passable, not readable: an image restored below it may belong to another user.
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    if not choices.config.exists():
        _write(choices.config, _settings_file(choices))
    given = settings.load(choices.config)
    _require_agreement(choices, given)
    _require_plain("runtime_dir", given.runtime_dir)
    Path(given.runtime_dir).mkdir(parents=True, exist_ok=True, mode=0o711)
    data = state_dir / "redis"
    for directory in (data, log_dir(given), *(Path(r.path) for r in given.repositories.values())):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    redis_file = REDIS_FILE.format(socket=_redis_socket(given), data=data)
    _write(state_dir / "redis.conf", redis_file)
    return given


def write_supervisord(given: Settings, config: Path) -> Path:
    """Write what supervisord is to run; gives the file."""
    log = log_dir(given)
    text = SUPERVISORD_FILE.format(
        user=pwd.getpwuid(os.geteuid()).pw_name,
        state_dir=given.state_dir,
        runtime_dir=given.runtime_dir,
        log=log,
        config=config,
    )
    text += PROGRAM.format(
        name=REDIS,
        command=f"redis-server {given.state_dir}/redis.conf",
        priority=1,
        seconds=1,
        log=log,
    )
    # -P: nothing in the current directory may shadow our packages. % is supervisord's own.
    python = shlex.quote(sys.executable).replace("%", "%%")
    for role in ROLES:
        command = f"{python} -P -m tasks.role {role}"
        text += PROGRAM.format(name=role, command=command, priority=10, seconds=3, log=log)
    path = Path(given.state_dir, SUPERVISORD_NAME)
    _write(path, text)
    return path


def _settings_file(choices: Choices) -> str:
    state_dir = choices.state_dir
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]
    runtime_dir = f"/run/virtvault/{name}"
    repository = Path(choices.repository or state_dir / "repository").absolute()
    values = {
        "state_dir": str(state_dir),
        "runtime_dir": runtime_dir,
        "broker_url": f"redis+socket://{runtime_dir}/redis.sock?virtual_host=0",
        "catalog_url": f"sqlite:///{state_dir}/catalog.sqlite",
        "libvirt_uri": choices.libvirt_uri or Settings.libvirt_uri,
        "flower_port": choices.flower_port or Settings.flower_port,
        "repository": str(repository),
    }
    # A JSON string is a TOML basic string.
    quoted = {k: json.dumps(v, ensure_ascii=False) for k, v in values.items()}
    return SETTINGS_FILE.format(**quoted)


def _require_plain(name: str, path: str) -> None:
    if not PLAIN_PATH.match(path):
        raise InvalidSettings(
            f"{name} {path!r} has a character that Redis or supervisord would take for "
            "something else.",
            "Use ASCII letters, digits and . _ - @ + , = only.",
        )


def _require_agreement(choices: Choices, given: Settings) -> None:
    """An option that the kept file contradicts would otherwise be ignored in silence."""
    paths = [repository.path for repository in given.repositories.values()]
    wanted = choices.repository and str(Path(choices.repository).absolute())
    wrong = {
        "state_dir": given.state_dir != str(choices.state_dir),
        "--libvirt-uri": choices.libvirt_uri not in (None, given.libvirt_uri),
        "--flower-port": choices.flower_port not in (None, given.flower_port),
        "--repository": bool(wanted) and wanted not in paths,
    }
    for name, contradicts in wrong.items():
        if contradicts:
            raise InvalidSettings(
                f"{choices.config} says otherwise than {name}.",
                "Edit that file, or leave the option out.",
            )
    # Anything but redis+socket:///path is no path either.
    if not PLAIN_PATH.match(_redis_socket(given)):
        raise InvalidSettings(
            f"broker_url is {given.broker_url}, but `virtvault up` runs a Redis of its own on a "
            "unix socket.",
            f"Mend {choices.config} (or VIRTVAULT_BROKER_URL). For a shared Redis start the roles "
            "one by one: `virtvault worker`, `control`, `central`, `beat`, `flower`.",
        )


def _redis_socket(given: Settings) -> str:
    return given.broker_url.removeprefix("redis+socket://").partition("?")[0]


def _write(path: Path, text: str) -> None:
    """All of it or none: a kill while writing must not leave half a configuration."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text)
    draft.replace(path)
