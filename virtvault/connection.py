"""What a client talks through: Redis, the hypervisors' queues and the central one."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from typing import Any, Self

from virtvault import queues, runs, schemas
from virtvault.celery_app import client_app
from virtvault.errors import NotReachable, UnknownDomain
from virtvault.handle import value
from virtvault.models import DomainInfo, HostInfo
from virtvault.runs import RunRecord
from virtvault.settings import Settings, load

__all__ = ["Connection"]


class Connection:
    """Sends work and questions, and knows which hypervisors live and what they have."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load()
        self.app = client_app(self.settings)
        self._questions = client_app(self.settings, shown=False)
        self.redis = runs.connect(self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to Redis; the client opens new ones where it is used again."""
        self.redis.close()
        for app in (self.app, self._questions):
            with contextlib.suppress(AttributeError):  # a backend that has no client of Redis
                app.backend.client.close()
            app.close()

    def hosts(self) -> list[HostInfo]:
        """All hypervisors heard of, the silent ones too."""
        with runs.reachable():
            seen: Any = self.redis.hgetall(queues.HOSTS_KEY)
        found = []
        for host, when in sorted((h.decode(), w.decode()) for h, w in seen.items()):
            said = self._said(host)
            found.append(
                HostInfo(
                    host=host,
                    alive=said is not None,
                    seen=when,
                    libvirt=said["versions"].get("libvirt", "") if said else "",
                    qemu=said["versions"].get("qemu", "") if said else "",
                    domains=len(said["domains"]) if said else 0,
                    repositories=tuple(said["repositories"]) if said else (),
                )
            )
        return found

    def domains(self, host: str = "") -> list[DomainInfo]:
        """The domains of one or all living hypervisors, asked just now."""
        found = []
        for name in [host] if host else self._living():
            found += [schemas.load(DomainInfo, item) for item in self._ask(name, queues.DOMAINS)]
        return found

    def find_domain(self, domain: str) -> DomainInfo:
        """The domain meant by a name, a uuid or ``host/name``, and its hypervisor.

        :raises UnknownDomain: none, or several hypervisors have it.
        """
        host, _, name = domain.rpartition("/")
        wanted = host or ""

        def matching(items: list[DomainInfo]) -> list[DomainInfo]:
            return [d for d in items if name in (d.name, d.uuid) and wanted in ("", d.host)]

        known = []
        for living in self._living():
            said = self._said(living)
            known += [schemas.load(DomainInfo, d) for d in (said or {"domains": []})["domains"]]
        # One that was defined within the last heartbeat is found by asking.
        found = matching(known) or matching(self.domains(wanted))
        if len(found) > 1:
            raise UnknownDomain(
                f"Domain {domain!r} is on {len(found)} hypervisors.",
                f"Name one: {', '.join(f'{d.host}/{d.name}' for d in found)}.",
            )
        if not found:
            raise UnknownDomain(
                f"No hypervisor has a domain {domain!r}.", "`virtvault domains` lists them."
            )
        return found[0]

    # -- inside -------------------------------------------------------------------------------

    def _publish(self, task: str, host: str, payload: dict[str, Any]) -> RunRecord:
        """Record a run on a hypervisor's queue, then publish it."""
        run = runs.new_record(str(uuid.uuid4()), task, queues.host_queue(host), host, payload)
        runs.submit(self.app, self.redis, run)
        return run

    def _living(self) -> list[str]:
        living = [info.host for info in self.hosts() if info.alive]
        if not living:
            raise NotReachable(
                "No hypervisor's worker is alive.",
                "Start one: `virtvault up` on a single hypervisor, `virtvault worker` in a fleet.",
            )
        return living

    def _said(self, host: str) -> dict[str, Any] | None:
        with runs.reachable():
            text: Any = self.redis.get(queues.host_key(host))
        said: dict[str, Any] | None = json.loads(text) if text else None
        return said

    def _host(self, host: str) -> dict[str, Any]:
        """What a living hypervisor last said.

        :raises NotReachable: it is silent; work sent to it would lie in its queue unseen.
        """
        said = self._said(host)
        if said is None:
            raise NotReachable(
                f"The worker of hypervisor {host!r} is not heard of.",
                "`virtvault hosts` shows which are; start `virtvault worker` there.",
            )
        return said

    def _ask(self, host: str, task: str, *arguments: Any, **named: Any) -> Any:
        self._host(host)
        return self._question(queues.control_queue(host), task, *arguments, **named)

    def _question(self, queue: str, task: str, *arguments: Any, **named: Any) -> Any:
        """Send a short question and wait for its answer.

        :raises NotReachable: none came in time; the question expires with our patience.
        """
        seconds = self.settings.control_timeout
        with runs.reachable():
            sent = self._questions.send_task(
                task, args=list(arguments), kwargs=named, queue=queue, expires=seconds
            )
            until, pause = time.monotonic() + seconds, 0.01
            while time.monotonic() < until:
                meta = self._questions.backend.get_task_meta(sent.id, cache=False)
                if meta["status"] in ("SUCCESS", "FAILURE", "REVOKED"):
                    self._questions.backend.forget(sent.id)
                    return value(meta)
                time.sleep(pause)
                pause = min(pause * 1.5, 0.2)
        raise NotReachable(
            f"No answer from queue {queue} within {seconds} s.",
            "See whether its worker runs: `virtvault hosts`; in a fleet, `virtvault central` too.",
        )
