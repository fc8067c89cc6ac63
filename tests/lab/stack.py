"""The roles of one hypervisor as real processes, to be killed and started again by tests."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.redis_server import RedisServer
from virtvault import Client
from virtvault.settings import load

__all__ = ["Stack"]

# Seconds until a started worker must have said that it is alive; 2-4 s are usual.
START_TIMEOUT = 60.0


class Stack:
    """Redis, worker, control, central and beat with all their files in `directory`.

    `beside` another stack it is a second hypervisor: worker and control alone, with the Redis and
    the repository of the other.
    """

    roles: tuple[str, ...] = ("worker", "control", "central", "beat")

    def __init__(self, directory: Path, *, beside: "Stack | None" = None, **settings: object):
        self.directory = directory
        self.runtime = Path("/run", f"{directory.name}-rt")
        self._beside = beside
        if beside is None:
            self.repository = directory / "repo"
            self.repository.mkdir()
            self.redis = RedisServer(directory / "redis")
        else:
            directory.mkdir(mode=0o711)
            self.repository, self.redis = beside.repository, beside.redis
            self.roles = ("worker", "control")
        self.config = directory / "virtvault.toml"
        values: dict[str, object] = {
            "host": f"lab-{directory.name}",
            "state_dir": str(directory / "state"),
            "runtime_dir": str(self.runtime),
            "broker_url": self.redis.url,
            "catalog_url": f"sqlite:///{directory}/catalog.sqlite",
            "restore_roots": [str(directory)],
            "lease_seconds": 6,
            "sweep_seconds": 1,
            **settings,
        }
        self.host = str(values["host"])
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines += ["[repositories.main]", f'path = "{self.repository}"', ""]
        self.config.write_text("\n".join(lines))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        if self._beside is None:
            self.redis.start()
        for role in self.roles:
            self.start(role)
        self.wait_alive()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        for role in list(self._processes):
            self.stop(role, signal.SIGTERM)
        if self._beside is None:
            self.redis.close()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def client(self) -> Client:
        """A client of this stack."""
        client = Client(load(self.config, {}))
        self._clients.append(client)
        return client

    def start(self, role: str) -> None:
        """Start a role; its log is `<directory>/<role>.log`."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VIRTVAULT_")}
        with (self.directory / f"{role}.log").open("ab") as log:
            self._processes[role] = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.role", role],
                env={**environment, "VIRTVAULT_CONFIG": str(self.config)},
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def stop(self, role: str, number: signal.Signals = signal.SIGKILL) -> float:
        """Send a role a signal and give the seconds until it had ended."""
        process = self._processes.pop(role)
        began = time.monotonic()
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise
        return time.monotonic() - began

    def log(self, role: str) -> str:
        """What a role has logged so far."""
        return (self.directory / f"{role}.log").read_text()

    def wait_alive(self) -> None:
        """Wait until worker and control answer."""
        client = self.client()
        until = time.monotonic() + START_TIMEOUT
        while not any(host.alive for host in client.hosts() if host.host == self.host):
            if time.monotonic() > until:
                raise TimeoutError(f"no worker came up; see {self.directory}/worker.log")
            time.sleep(0.05)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
