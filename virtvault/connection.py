"""What a client talks through: Redis, the hypervisors' queues and the central one."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from typing import Any, Self

from virtvault import queues, runs, schemas
from virtvault.celery_app import client_app
from virtvault.errors import NotReachable
from virtvault.handle import READY, value
from virtvault.inventory import Inventories, Said
from virtvault.models import DomainInfo, HostInfo
from virtvault.runs import RunRecord
from virtvault.settings import Settings, load
from virtvault.whereabouts import Place, locate, of_two_minds

__all__ = ["Connection"]

# So many hypervisors at most are asked for a domain that none has told of: a question to each is
# nothing for a few, and no way to answer a misspelt name in a fleet.
ASKED = 16


class Connection:
    """Sends work and questions, and knows which hypervisors live and what they have."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load()
        self.app = client_app(self.settings)
        self._questions = client_app(self.settings, shown=False)
        self.redis = runs.connect(self.settings)
        self.inventories = Inventories(self.redis)

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
        """All hypervisors heard of, the gone ones too, with what they said last."""
        return [said.info() for said in self.inventories.look().values()]

    def domains(self, host: str = "") -> list[DomainInfo]:
        """The domains of all hypervisors as these told last, which they do as it changes.

        Those of a hypervisor that is gone are ``unreachable``, of one whose libvirt does not answer
        ``unknown``.

        :param host: of that one alone; where it lives it is asked just now.
        :raises NotReachable: no hypervisor was ever heard of, or this one does not answer.
        """
        if not host:
            seen = self.inventories.look()
            if not seen:
                raise _nobody()
            return [domain for said in seen.values() for domain in said.domains()]
        found = self.inventories.one(host)
        if found is None:
            raise _never(host)
        return self._domains_now([host]) if found.alive else found.domains()

    def find_domain(self, domain: str) -> DomainInfo:
        """The domain meant by a name, a uuid or ``host/name``, and the hypervisor it is on.

        That is where it runs, else where it ran last.

        :raises UnknownDomain: there is none, or it cannot be told which is meant.
        :raises DomainBusy: it is just being migrated.
        :raises NotReachable: its hypervisor is gone.
        """
        host, _, name = domain.rpartition("/")
        seen = {at: said for at, said in self.inventories.look().items() if host in ("", at)}
        if not seen:
            raise _never(host) if host else _nobody()
        places = [_place(said, d) for said in seen.values() for d in said.called(name)]
        living = [at for at, said in seen.items() if said.alive]
        if not places and not living:
            raise _gone(seen[host]) if host else _nobody()
        if of_two_minds(places):
            asked = sorted({place.host for place in places if place.runs})
        else:
            # One that was defined just now is found by asking.
            asked = living if not places and len(living) <= ASKED else []
        if asked:
            now = [d for d in self._domains_now(asked) if name in (d.name, d.uuid)]
            places = [place for place in places if place.host not in asked]
            places += [Place(d, seen[d.host].seen) for d in now]
        return locate(domain, places)

    # -- inside -------------------------------------------------------------------------------

    def _publish(self, task: str, host: str, payload: dict[str, Any]) -> RunRecord:
        """Record a run on a hypervisor's queue, then publish it."""
        run = runs.new_record(str(uuid.uuid4()), task, queues.host_queue(host), host, payload)
        runs.submit(self.app, self.redis, run)
        return run

    def _living(self) -> list[str]:
        living = [host for host, said in self.inventories.look().items() if said.alive]
        if not living:
            raise _nobody()
        return living

    def _said(self, host: str) -> HostInfo | None:
        """What a living hypervisor last said, None of one that is gone."""
        found = self.inventories.one(host)
        return found.info() if found is not None and found.alive else None

    def _host(self, host: str) -> HostInfo:
        """What a living hypervisor last said.

        :raises NotReachable: it is silent; work sent to it would lie in its queue unseen.
        """
        return self._alive(host).info()

    def _alive(self, host: str) -> Said:
        found = self.inventories.one(host)
        if found is None:
            raise _never(host)
        if not found.alive:
            raise _gone(found)
        return found

    def _domains_now(self, hosts: Sequence[str]) -> list[DomainInfo]:
        """The domains of living hypervisors, asked just now and all at once."""
        queries = [queues.control_queue(host) for host in hosts]
        answers = self._questions_to(queries, queues.DOMAINS)
        return [schemas.load(DomainInfo, item) for answer in answers for item in answer]

    def _ask(self, host: str, task: str, *arguments: Any, **named: Any) -> Any:
        self._alive(host)
        return self._question(queues.control_queue(host), task, *arguments, **named)

    def _question(self, queue: str, task: str, *arguments: Any, **named: Any) -> Any:
        """Send a short question and wait for its answer.

        :raises NotReachable: none came in time; the question expires with our patience.
        """
        return self._questions_to([queue], task, *arguments, **named)[0]

    def _questions_to(
        self, to: Sequence[str], task: str, *arguments: Any, **named: Any
    ) -> list[Any]:
        """Send the same question to several queues; their answers in that order.

        :raises NotReachable: one did not come in time; the questions expire with our patience.
        """
        seconds = self.settings.control_timeout
        backend = self._questions.backend
        with runs.reachable():
            sent = [
                self._questions.send_task(
                    task, args=list(arguments), kwargs=named, queue=queue, expires=seconds
                )
                for queue in to
            ]
            metas: dict[str, Any] = {}
            until, pause = time.monotonic() + seconds, 0.01
            while len(metas) < len(sent) and time.monotonic() < until:
                for one in sent:
                    if one.id not in metas:
                        meta = backend.get_task_meta(one.id, cache=False)
                        if meta["status"] in READY:
                            backend.forget(one.id)
                            metas[one.id] = meta
                if len(metas) < len(sent):
                    time.sleep(pause)
                    pause = min(pause * 1.5, 0.2)
        silent = [queue for queue, one in zip(to, sent, strict=True) if one.id not in metas]
        if silent:
            raise NotReachable(
                f"No answer from queue {', '.join(silent)} within {seconds} s.",
                "See whether `virtvault central` runs, and its log."
                if silent == [queues.CENTRAL]
                else "See whether `virtvault control` runs there, and its log.",
            )
        void = [
            queue
            for queue, one in zip(to, sent, strict=True)
            if metas[one.id]["status"] == "REVOKED"
        ]
        if void:
            raise NotReachable(
                f"The question to queue {', '.join(void)} was read there as one of more than "
                f"{seconds} s ago, and not answered.",
                "Set the clocks: this host's is behind that one's.",
            )
        return [value(metas[one.id]) for one in sent]


def _place(said: Said, domain: DomainInfo) -> Place:
    why = f"{_silence(said)} It was {domain.state} there then." if not said.alive else ""
    return Place(domain, said.seen, said.alive, said.certain, why)


def _silence(said: Said) -> str:
    return f"The worker of hypervisor {said.host!r} was last heard of on {said.seen}."


def _gone(said: Said) -> NotReachable:
    return NotReachable(
        _silence(said),
        f"Start `virtvault worker` on {said.host}; `virtvault hosts` shows which live.",
    )


def _never(host: str) -> NotReachable:
    return NotReachable(
        f"The worker of hypervisor {host!r} is not heard of.",
        "`virtvault hosts` shows which are; start `virtvault worker` there.",
    )


def _nobody() -> NotReachable:
    return NotReachable(
        "No hypervisor's worker is alive.",
        "Start one: `virtvault up` on a single hypervisor, `virtvault worker` in a fleet.",
    )
