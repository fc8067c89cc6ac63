"""Telling those outside: webhooks, e-mail and completion callbacks, from the catalog's outbox.

A notice lies in the outbox until somebody has taken it: it is sent again with growing pauses for a
day, then given up, which is an alert of its own. It may arrive twice where central is killed in
between; its ``id`` is the same then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from tasks.catalog import Catalog, Notice
from tasks.mail import MAILTO, send_email
from tasks.submit import may_call
from tasks.webhook import post
from virtvault.models import Alert
from virtvault.moments import written
from virtvault.settings import Settings

__all__ = ["ALERTS", "Delivery", "targets"]

log = logging.getLogger(__name__)

# The kind of a payload that tells of alerts; others are ended runs.
ALERTS = "alerts"
# Notices looked at in one round.
AT_ONCE = 200
# Seconds one round may take; it excludes others, and what is left comes with the next.
ROUND = 60.0
# Seconds of the first pause, of the longest, and until a notice is given up.
FIRST, LONGEST, GIVE_UP = 15.0, 900.0, 86_400.0


class NotDelivered(Exception):
    """Why a notice was not sent at all."""


def targets(settings: Settings) -> list[str]:
    """Whom to tell of alerts: webhooks, and each recipient of e-mail by himself."""
    mail = [f"{MAILTO}{address}" for address in settings.notify.email_to]
    return [*settings.notify.webhooks, *mail]


class Delivery:
    """Sends what is due. One of a process; processes exclude each other by a lock of the caller."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings

    def due(self, now: datetime) -> bool:
        """Whether anything is to be sent."""
        return bool(self._catalog.due_notices(written(now), 1))

    def round(self, now: datetime, alone: Callable[[], object] = bool) -> int:
        """Send what is due at ``now``; gives how many notices were taken by somebody.

        :param alone: called before each is sent; the lock is to be held for that long.
        """
        due = self._catalog.due_notices(written(now), AT_ONCE)
        letters: dict[str, list[Notice]] = {}
        sent, refused = 0, dict[str, str]()
        until = time.monotonic() + ROUND
        for notice in due:
            if time.monotonic() > until:
                break
            alone()
            if notice.target.startswith(MAILTO):
                letters.setdefault(notice.target, []).append(notice)
            else:
                sent += self._try([notice], self._posting(notice), now, refused)
        for target, found in letters.items():
            alone()
            waiting = sorted(found, key=lambda notice: notice.at)
            if _waited(waiting, now) >= self._settings.notify.email_wait:
                sent += self._try(waiting, self._mailing(target, waiting), now, refused)
        return sent

    def _posting(self, notice: Notice) -> Callable[[], None]:
        notify = self._settings.notify
        if notice.payload.get("kind") == ALERTS:
            body = {"id": notice.id, "at": notice.at, **notice.payload}
            known, where = notice.target in notify.webhooks, "webhooks of [notify]"
        else:
            body = {"id": notice.id, "at": notice.at, "kind": "run", "run": notice.payload}
            known, where = may_call(notice.target, self._settings.callback_urls), "callback_urls"

        def send() -> None:
            if not known:
                raise NotDelivered(f"it is not among the {where} in central's settings (any more)")
            post(notice.target, body, notify.webhook_secret_file)

        return send

    def _mailing(self, target: str, waiting: Sequence[Notice]) -> Callable[[], None]:
        notify = self._settings.notify
        address = target.removeprefix(MAILTO)

        def send() -> None:
            if address not in notify.email_to:
                raise NotDelivered("it is not among email_to of [notify] in central's settings")
            send_email(notify, address, [(notice.id, notice.payload) for notice in waiting])

        return send

    def _try(
        self,
        notices: Sequence[Notice],
        send: Callable[[], None],
        now: datetime,
        refused: dict[str, str],
    ) -> int:
        """Send, and note what came of it. Who has just not answered is not waited for twice."""
        subject = _subject(notices[0].target)
        try:
            if subject in refused:
                raise NotDelivered(refused[subject])
            send()
        except Exception as error:  # whatever it is: it must not keep others from their notices
            why = str(error) or type(error).__name__
            if not isinstance(error, NotDelivered):
                refused[subject] = why
            log.warning("%d notices to %s are not delivered: %s", len(notices), subject, why)
            for notice in notices:
                self._failed(notice, subject, why, now)
            return 0
        for notice in notices:
            self._catalog.notice_sent(notice.id, written(now))
        if any(alert.subject == subject for alert in self._given_up()):
            self._catalog.close_alert("notice", subject, written(now))
        return len(notices)

    def _failed(self, notice: Notice, subject: str, why: str, now: datetime) -> None:
        lasted = (now - datetime.fromisoformat(notice.at)).total_seconds()
        give_up = lasted >= GIVE_UP
        pause = min(FIRST * 2 ** min(notice.tries, 20), LONGEST)
        again = written(now + timedelta(seconds=pause))
        self._catalog.notice_failed(notice.id, why, again, give_up)
        if give_up:
            self._catalog.open_alert(
                Alert(
                    kind="notice",
                    subject=subject,
                    opened=written(now),
                    detail=f"Notices to {subject} were given up after a day: {why}.",
                    mend="Mend what answers there, or [notify] and callback_urls in the settings.",
                )
            )

    def _given_up(self) -> list[Alert]:
        return [alert for alert in self._catalog.alerts() if alert.kind == "notice"]


def _subject(target: str) -> str:
    """Whom a notice is for, without what may be a secret: paths of webhooks often are."""
    if target.startswith(MAILTO):
        return target.removeprefix(MAILTO)
    parts = urlsplit(target)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}"


def _waited(waiting: Sequence[Notice], now: datetime) -> float:
    """Seconds since the oldest of them, which is how long the others are collected."""
    return max((now - datetime.fromisoformat(n.at)).total_seconds() for n in waiting)
