"""The Backups page's routes in Flower's server. Everything is behind Flower's authentication."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tornado.options import options
from tornado.web import HTTPError, url

from tasks.web import page_data, page_history, page_live
from tasks.web.page_answers import Answer, Answers, stamp
from tasks.web.page_assets import Asset, View, assets
from tasks.web.page_data import Fleet
from virtvault import Client, schemas
from virtvault.errors import BadInput
from virtvault.models import RunInfo, SlotRecord
from virtvault.stored import UUID

__all__ = ["routes"]

# Seconds an answer is good enough for.
FLEET_SECONDS = 4.0
DOMAIN_SECONDS = 4.0
# One domain's answer costs little: that it took long says that others are at work.
DOMAIN_FACTOR = 1.0
HISTORY_SECONDS = 10.0
TRENDS_SECONDS = 60.0
LIVE_SECONDS = 1.0
# Runs and slots asked of central at a time.
HISTORY_LIMIT = 5000
DOMAIN_LIMIT = 200
# Questions at a time. Redis is read by one thread of its own: never behind a silent central.
THREADS = 4


@dataclass(frozen=True)
class Source:
    """Whom the page asks, and what was answered."""

    client: Client
    central: Answers
    live: Answers
    now: Callable[[], datetime]


def routes(client: Client) -> list[Any]:
    """Routes of the page, its data and its assets."""
    prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
    threads = ThreadPoolExecutor(THREADS, "backups-page")
    alone = ThreadPoolExecutor(1, "backups-page-live")
    source = Source(client, Answers(threads), Answers(alone), lambda: datetime.now(UTC))
    data = {
        "status": Status,
        "alerts": Alerts,
        "running": Running,
        "timeline": Timeline,
        "trends": Trends,
        r"domain/([^/]+)": Domain,
    }
    files = {"files": assets()}
    return [
        url(f"{prefix}/backups", Asset, {**files, "name": "backups.html"}, name="backups"),
        url(f"{prefix}/backups/static/([a-z.-]+)", Asset, files),
        *(
            url(f"{prefix}/backups/data/{path}", view, {"source": source})
            for path, view in data.items()
        ),
    ]


class Data(View):
    """JSON: ``{"data", "at", "now", "trouble"}``; ``data`` is as it was ``at`` (UTC).

    ``trouble`` is None, or ``{"message", "mend"}``: why nothing newer is known. Then ``data`` is
    what was known last, or None.
    """

    source: Source

    def initialize(self, source: Source) -> None:
        self.source = source

    def prepare(self) -> None:
        if not self.current_user:
            # Not the way to the login page: a script asks, and its reader is told.
            self.set_status(401)
            self._say(None, "", "You are not logged in any more.", "Reload the page to log in.")

    async def get(self, *path: str) -> None:
        answer = await self.ask(*path)
        data = None if answer.value is None else await self._shaped(answer.value)
        trouble = answer.trouble
        if trouble is None:
            self._say(data, answer.at)
            return
        self.set_status(404 if isinstance(trouble, BadInput) else 503)
        self._say(data, answer.at, trouble.message, trouble.mend)

    async def ask(self, *path: str) -> Answer:
        """What is known; asked for where it is too old."""
        raise NotImplementedError

    def shape(self, value: Any) -> Any:
        """What of it this viewer gets; runs in a thread."""
        return value

    async def _shaped(self, value: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, self.shape, value)

    def _say(self, data: Any, at: str, message: str = "", mend: str = "") -> None:
        trouble = {"message": message, "mend": mend} if message else None
        self.set_header("Cache-Control", "no-store")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"data": data, "at": at, "now": stamp(), "trouble": trouble}))

    def text(self, name: str, default: str = "", known: Any = None) -> str:
        """An argument; :raises HTTPError: it is none of ``known``."""
        found = str(self.get_argument(name, default, escape=False))
        if known is not None and found not in known:
            raise HTTPError(400, f"{name} is one of {', '.join(known)}")
        return found

    def number(self, name: str, default: int = 0) -> int:
        return min(10**6, max(0, int(self.get_argument(name, default, type=int))))


class Status(Data):
    """Totals, hypervisors, cells, and one page of domains."""

    async def ask(self, *path: str) -> Answer:
        return await _fleet(self.source)

    def shape(self, value: Fleet) -> dict[str, Any]:
        only = self.text("only", "", ("", *page_data.FILTERS))
        sort = self.text("sort", "attention", page_data.SORTS)
        page = value.page(
            self.text("q"),
            only,
            sort,
            self.text("down") == "1",
            self.number("page"),
            self.number("size", page_data.PAGE),
        )
        return {
            **value.summary,
            "domains": page,
            "hosts": value.hosts(all_of_them=self.text("hosts") == "all"),
            "cells": None if self.text("seen") == value.seen else value.cells,
            "seen": value.seen,
        }


class Alerts(Data):
    """What is wrong now."""

    async def ask(self, *path: str) -> Answer:
        client = self.source.client
        return await self.source.central.get(
            "alerts", lambda: page_data.alerts(client.alerts()), FLEET_SECONDS
        )


class Running(Data):
    """What is at work, from Redis alone; names of domains as central said them last."""

    async def ask(self, *path: str) -> Answer:
        client = self.source.client
        return await self.source.live.get(
            "running", lambda: page_live.running(client), LIVE_SECONDS
        )

    def shape(self, value: dict[str, Any]) -> dict[str, Any]:
        fleet = self.source.central.last("fleet")
        names = fleet.names if fleet else {}
        for one in (*value["running"], *value["queued"]):
            one["domain"] = one["domain"] or names.get(one["uuid"], "")
        return value


class Timeline(Data):
    """Runs and slots of the last 24 h, by hypervisor."""

    async def ask(self, *path: str) -> Answer:
        client, since = self.source.client, stamp(self.source.now() - timedelta(hours=24))
        return await self.source.central.get(
            "timeline",
            lambda: (
                client.runs(since=since, limit=HISTORY_LIMIT),
                client.slots(since=since, limit=HISTORY_LIMIT),
            ),
            HISTORY_SECONDS,
        )

    def shape(self, value: tuple[list[RunInfo], list[SlotRecord]]) -> dict[str, Any]:
        runs, slots = value
        return page_history.timeline(
            runs,
            slots,
            self.source.now(),
            search=self.text("q"),
            number=self.number("page"),
            limit=HISTORY_LIMIT,
        )


class Trends(Data):
    """Sizes and durations of the fleet's backups over time."""

    async def ask(self, *path: str) -> Answer:
        client, now = self.source.client, self.source.now()
        span = self.text("span", "7d", page_history.SPANS)
        count, width = page_history.SPANS[span]
        since = stamp(now - count * width)
        return await self.source.central.get(
            f"trends {span}",
            lambda: page_history.trends(
                client.runs(since=since, limit=HISTORY_LIMIT), now, span, limit=HISTORY_LIMIT
            ),
            TRENDS_SECONDS,
        )


class Domain(Data):
    """One domain: how it is, its points and chains, its runs and slots."""

    async def ask(self, *path: str) -> Answer:
        uuid = path[0]
        if not UUID.fullmatch(uuid):
            raise HTTPError(404, "a domain is named by its uuid")
        client = self.source.client
        return await self.source.central.get(
            f"domain {uuid}", lambda: _domain(client, uuid), DOMAIN_SECONDS, DOMAIN_FACTOR
        )


async def _fleet(source: Source) -> Answer:
    return await source.central.get("fleet", lambda: Fleet(source.client.fleet()), FLEET_SECONDS)


def _domain(client: Client, uuid: str) -> dict[str, Any]:
    fleet = client.fleet(uuid)
    runs = client.runs(domain=uuid, limit=DOMAIN_LIMIT)
    slots = client.slots(domain=uuid, limit=DOMAIN_LIMIT)
    return {
        "status": schemas.dump(fleet.domains[0]) if fleet.domains else None,
        **page_data.points(client.points(uuid), client.statuses(uuid)),
        "runs": [page_history.run(one) for one in runs],
        "slots": [schemas.dump(one) for one in slots if one.state in page_history.UNRUN],
    }
