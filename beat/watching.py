"""The watch: looks at the fleet again and again, opens and closes alerts, and tells of them.

Beat asks for a look every few seconds. Where it does not (none leads, or Redis is away), central
looks by itself: that is when somebody has to be told.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import redis

from beat.alerts import Changes, Open, Seen, Telling, decide
from beat.gathering import Gathering, now
from beat.leader import who_leads
from beat.questions import publish
from tasks.catalog import Catalog, NewNotice
from tasks.notices import ALERTS, Delivery, targets
from virtvault import runs, schemas
from virtvault.errors import NotReachable
from virtvault.models import FleetStatus
from virtvault.moments import written
from virtvault.settings import Settings

__all__ = ["Watch"]

log = logging.getLogger(__name__)

LOOKED_KEY = "virtvault:watch:looked"
LOOKING_KEY = "virtvault:watch:looking"
DELIVERING_KEY = "virtvault:watch:delivering"
# Seconds without a look asked for by beat until central looks by itself.
UNASKED = 60
# Seconds a look, or one delivery, excludes others where its process is killed.
EXCLUSIVE = 30
# Seconds between two looks of each central worker at what there is to do.
PAUSE = 2.0
# Freshness is looked at again after so many times as long as that took.
REST = 30.0
# Alerts that one notice lists; of more it tells the number.
LISTED = 500
# Alerts of one look that the log tells one by one.
LOGGED = 20
DAY = 86_400.0
# Seconds until a notice that was given up is no longer shown, where nothing was sent there since.
UNDELIVERED = 7 * DAY


class Watch:
    """One of a process; processes exclude each other through Redis, and the catalog in the end."""

    def __init__(
        self, catalog: Catalog, client: redis.Redis, settings: Settings, gathering: Gathering
    ) -> None:
        self._catalog = catalog
        self._client = client
        self._settings = settings
        self._gathering = gathering
        self._delivery = Delivery(catalog, settings)
        # Since when hypervisors and beat have been missed, by this process' own looks.
        self._missed: dict[str, datetime] = {}
        self._no_beat: datetime | None = None
        self._fresh_again = 0.0
        self._tidy_again = 0.0

    def look(self, clock: Callable[[], datetime] = now) -> bool:
        """Look once; False where another process is just looking."""
        with self._alone(LOOKING_KEY) as alone:
            if not alone:
                return False
            at = clock()
            known = [Open(alert, told) for alert, told in self._catalog.open_alerts()]
            self._write(decide(self._seen(at), known, self._settings.notify.repeat), at)
            if time.monotonic() >= self._tidy_again:
                self._tidy_again = time.monotonic() + DAY
                self._tidy(at)
        try:
            # Beat reads them there, and Redis may have been flushed.
            publish(self._catalog, self._client)
            self._client.set(LOOKED_KEY, written(at), ex=UNASKED)
        except redis.RedisError as error:
            log.info("that was not noted: %s", error)
        return True

    def deliver(self, clock: Callable[[], datetime] = now) -> int:
        """Send the notices that are due; gives how many were taken."""
        if not self._delivery.due(clock()):
            return 0
        with self._alone(DELIVERING_KEY) as alone:
            return self._delivery.round(clock(), self._still_delivering) if alone else 0

    def start(self) -> threading.Thread:
        """Deliver, and look where nobody asks for it, from a thread of its own."""
        thread = threading.Thread(target=self._keep, name="watch", daemon=True)
        thread.start()
        return thread

    # -- inside -------------------------------------------------------------------------------

    def _keep(self) -> None:
        while True:
            time.sleep(PAUSE)
            try:
                if not self._looked():
                    self.look()
                self.deliver()
            except NotReachable as error:
                log.warning("the watch cannot look: %s", error)
            except Exception:  # the watch goes on, whatever it stumbled over
                log.exception("the watch stumbled")

    def _looked(self) -> bool:
        """Whether anybody looked lately. Where Redis does not say, we look."""
        try:
            return bool(self._client.exists(LOOKED_KEY))
        except redis.RedisError:
            return False

    def _seen(self, at: datetime) -> Seen:
        try:
            gone = self._gone(at)
            with runs.reachable():
                beat = who_leads(self._client)
            beatless = self._beatless(at, beat, "none holds the lead in Redis")
        except NotReachable as error:
            gone, beatless = None, self._beatless(at, "", error.message.rstrip("."))
        status = self._status(at, redis_answers=gone is not None)
        never = [d.uuid for d in status.domains if d.health == "never" and d.rpo] if status else []
        since = {
            uuid_: datetime.fromisoformat(first)
            for uuid_, first in self._catalog.first_slots(never).items()
        }
        return Seen(
            now=at,
            status=status,
            since=since,
            gone=gone,
            beatless=beatless,
            failed=self._catalog.failing(),
            settled=self._catalog.settled(),
        )

    def _status(self, at: datetime, *, redis_answers: bool) -> FleetStatus | None:
        if time.monotonic() < self._fresh_again:
            return None
        began = time.monotonic()
        if redis_answers:
            status = self._gathering.status(lambda: at)
        else:
            status = self._gathering.status_without_redis(at)
        took = time.monotonic() - began
        self._fresh_again = time.monotonic() + REST * took if took > 0.2 else 0.0
        return status

    def _gone(self, at: datetime) -> Mapping[str, float]:
        hosts = self._gathering.hosts()
        missing = {host for host, info in hosts.items() if not info.alive}
        self._missed = {host: self._missed.get(host, at) for host in missing}
        return {host: (at - since).total_seconds() for host, since in self._missed.items()}

    def _beatless(self, at: datetime, beat: str, why: str) -> tuple[float, str]:
        """Seconds without a beat, and why; empty while one leads."""
        self._no_beat = None if beat else self._no_beat or at
        if self._no_beat is None:
            return 0.0, ""
        return (at - self._no_beat).total_seconds(), why

    def _write(self, changes: Changes, at: datetime) -> None:
        told = changes.tellings
        if not (changes.opened or changes.closed or told):
            return
        for telling in told[:LOGGED]:
            log.warning("alert %s: %s", telling.event, telling.words)
        if len(told) > LOGGED:
            log.warning("and %d more; `virtvault alerts` lists them", len(told) - LOGGED)
        notices = [
            NewNotice(f"alerts-{uuid.uuid4().hex}", target, _payload(told))
            for target in (targets(self._settings) if told else ())
        ]
        of_lasting = [telling.alert for telling in told if telling.event != "recovered"]
        self._catalog.change_alerts(
            written(at), changes.opened, changes.closed, of_lasting, notices
        )

    def _tidy(self, at: datetime) -> None:
        """Drop old history, and alerts that nothing will close."""
        self._catalog.forget(written(at - timedelta(days=self._settings.history_days)))
        for alert in self._catalog.alerts():
            opened = datetime.fromisoformat(alert.opened)
            if alert.kind == "notice" and (at - opened).total_seconds() > UNDELIVERED:
                self._catalog.close_alert(alert.kind, alert.subject, written(at))

    def _still_delivering(self) -> None:
        with suppress(redis.RedisError):
            self._client.expire(DELIVERING_KEY, EXCLUSIVE)

    @contextmanager
    def _alone(self, key: str) -> Iterator[bool]:
        """Whether no other process does the same now. Where Redis is away nobody can tell: yes."""
        token = uuid.uuid4().hex
        try:
            alone = bool(self._client.set(key, token, nx=True, ex=EXCLUSIVE))
        except redis.RedisError:
            alone = True
        try:
            yield alone
        finally:
            try:
                if alone and self._client.get(key) == token.encode():
                    self._client.delete(key)
            except redis.RedisError as error:
                log.info("%s expires by itself: %s", key, error)


def _payload(told: Sequence[Telling]) -> dict[str, object]:
    """What one notice tells; docs/notifications.md has it."""
    order = sorted(told, key=lambda telling: telling.event == "recovered")
    return {
        "kind": ALERTS,
        "summary": _summary(order),
        "alerts": [
            {"event": one.event, "words": one.words, **schemas.dump(one.alert)}
            for one in order[:LISTED]
        ],
        "more": max(0, len(order) - LISTED),
    }


def _summary(told: Sequence[Telling]) -> str:
    others = len(told) - 1
    return told[0].words + (f" And {others} more." if others else "")
