"""One hypervisor, central and Flower with one tiny guest, as those see them who come by HTTP."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.integration.scenes import VDA
from tests.integration.test_flower import free_port, until
from tests.lab import Guest, Hypervisor
from tests.lab.stack import Stack
from virtvault.tokens import ROLES, TokenFile

PASSWORD = "operator:not a secret"


class _Stack(Stack):
    roles = ("worker", "control", "central", "flower")


@dataclass
class Served:
    """What runs, and how it is reached."""

    stack: Stack
    guest: Guest
    url: str
    tokens: dict[str, str]

    def http(self, role: str = "") -> httpx.Client:
        """A client with the token of a role, or none."""
        headers = {"Authorization": f"Bearer {self.tokens[role]}"} if role else {}
        # Plain HTTP: reading the system's certificates for each client would take longest here.
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, verify=False)


@contextmanager
def served(**settings: object) -> Iterator[Served]:
    """Start it all, and take it down again."""
    port = free_port()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("FLOWER_BASIC_AUTH", PASSWORD)
        hypervisor = stack.enter_context(Hypervisor())
        directory = Path(tempfile.mkdtemp(prefix="vvlab-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o711)
        tokens = TokenFile(directory / "tokens.json")
        secrets = {role: tokens.add(role, role, datetime.now(UTC)) for role in ROLES}
        connection = hypervisor.connect()
        stack.callback(connection.close)
        (directory / "guest").mkdir()
        guest = Guest(
            connection, directory / "guest", f"vv-{uuid.uuid4().hex[:8]}", [VDA], boot=False
        )
        stack.enter_context(guest)
        guest.start()
        running = _Stack(
            directory,
            libvirt_uri=hypervisor.uri,
            flower_port=port,
            tokens_file=str(directory / "tokens.json"),
            **settings,
        )
        stack.enter_context(running)
        made = Served(running, guest, f"http://127.0.0.1:{port}", secrets)

        def answers() -> bool:
            try:
                with made.http() as http:
                    return http.get("/v1/openapi.json").status_code == 200
            except httpx.TransportError:
                return False

        until(answers, f"Flower; see {directory}/flower.log")
        yield made
        for role in running.roles:
            running.stop(role)  # at once: there is nothing left to be saved
