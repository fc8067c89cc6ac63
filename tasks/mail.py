"""One e-mail that tells all that came up within a while."""

from __future__ import annotations

import hashlib
import ipaddress
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any

from tasks.webhook import secret
from virtvault.errors import InvalidSettings
from virtvault.settings import NotifySettings

__all__ = ["MAILTO", "letter", "send_email"]

# Targets of notices that are e-mail begin so.
MAILTO = "mailto:"
# Seconds that the SMTP server may take for each step.
TIMEOUT = 15.0
# Alerts that one e-mail tells one by one.
LISTED = 100
HEADINGS = {"opened": "NEW", "lasting": "STILL SO", "recovered": "RECOVERED"}


def send_email(
    notify: NotifySettings, address: str, notices: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Send one e-mail to ``address`` with what these notices (id, payload) tell.

    :raises OSError: the server did not take it (:class:`smtplib.SMTPException` is one).
    :raises InvalidSettings: the password's file cannot be read, or it would be sent in the clear.
    """
    message = letter(notify.email_from, address, notices)
    host, _, port = notify.smtp.rpartition(":")
    if notify.smtp_user and not notify.smtp_starttls and not _loopback(host):
        raise InvalidSettings(
            f"The password of {notify.smtp_user} would go to {notify.smtp} unencrypted.",
            "Set smtp_starttls = true in [notify].",
        )
    with smtplib.SMTP(host, int(port), timeout=TIMEOUT) as server:
        if notify.smtp_starttls:
            server.starttls(context=ssl.create_default_context())
        if notify.smtp_user:
            server.login(notify.smtp_user, secret(notify.smtp_password_file).decode())
        server.send_message(message)


def letter(
    sender: str, address: str, notices: Sequence[tuple[str, dict[str, Any]]]
) -> EmailMessage:
    """The e-mail: new alerts first, then those that last, then those that are over."""
    alerts = [alert for _, payload in notices for alert in payload["alerts"]]
    more = sum(payload["more"] for _, payload in notices)
    message = EmailMessage()
    message["From"], message["To"] = sender, address
    message["Subject"] = _subject(alerts, more)
    message["Date"] = formatdate()
    # The same where it is sent twice: mail programs show one.
    ids = hashlib.sha256(" ".join([address, *sorted(id_ for id_, _ in notices)]).encode())
    message["Message-ID"] = f"<{ids.hexdigest()[:32]}@virtvault>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(alerts, more))
    return message


def _subject(alerts: Sequence[dict[str, Any]], more: int) -> str:
    fresh = [alert for alert in alerts if alert["event"] != "recovered"] or list(alerts)
    first = _line(fresh[0]["words"]) if fresh else "alerts"
    others = len(alerts) + more - 1
    text = first if len(first) <= 120 else f"{first[:119]}…"
    recovered = "" if fresh and fresh[0]["event"] != "recovered" else "recovered: "
    return f"[virtvault] {recovered}{text}" + (f" (and {others} more)" if others > 0 else "")


def _text(alerts: Sequence[dict[str, Any]], more: int) -> str:
    lines: list[str] = []
    for event, heading in HEADINGS.items():
        told = [alert for alert in alerts if alert["event"] == event]
        if not told:
            continue
        lines += [f"{heading} ({len(told)})", ""]
        for alert in told[:LISTED]:
            lines.append(f"- {_line(alert['words'])}")
            if alert["mend"] and event != "recovered":
                lines.append(f"  {_line(alert['mend'])}")
        more += max(0, len(told) - LISTED)
        lines.append("")
    if more:
        lines += [f"And {more} more.", ""]
    return "\n".join([*lines, "`virtvault alerts` lists what is wrong now.", ""])


def _line(text: str) -> str:
    """On one line: not all of it comes from us."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
