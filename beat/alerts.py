"""Which alerts open, last and close now, and of which somebody is to be told: a pure decision.

An alert is one per kind and subject while it lasts. What one cause explains is told once: the
domains of a hypervisor that is gone are told with it, and of a kind that was told of many times
within an hour the next are collected for a while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from virtvault.models import Alert, DomainStatus, FleetStatus, SlotRecord
from virtvault.moments import written
from virtvault.spans import in_words

__all__ = ["BEAT", "Changes", "Open", "Seen", "Telling", "decide"]

# Seconds a hypervisor, or beat, is away until that is an alert: a restart is none.
HOST_PATIENCE = 120.0
BEAT_PATIENCE = 60.0
# So many of a kind told within an hour are a storm; then they are told every so many seconds.
STORM, STORM_WAIT = 20, 900.0
# The subject of the one alert of its kind.
BEAT = "beat"

Key = tuple[str, str]


@dataclass(frozen=True)
class Open:
    """An alert that lasts, and when it was last told; empty: not yet."""

    alert: Alert
    told: str = ""


@dataclass(frozen=True)
class Seen:
    """What was found at ``now``; None of a part means that it was not looked at.

    ``gone`` are seconds for which hypervisors have been missed, ``beatless`` those for which no
    beat led, and why. ``failed`` are the last tries that failed and had no success since, each
    with its run. ``since`` maps the uuids of domains without a good point to when their first
    backup was due; one that is not among them still waits for it.
    """

    now: datetime
    status: FleetStatus | None = None
    since: Mapping[str, datetime] = field(default_factory=dict)
    gone: Mapping[str, float] | None = None
    beatless: tuple[float, str] | None = None
    failed: Sequence[tuple[SlotRecord, str, str]] | None = None
    settled: Set[str] = frozenset()


@dataclass(frozen=True)
class Telling:
    """What is told of an alert: ``opened``, ``lasting`` or ``recovered``, and a sentence."""

    event: str
    alert: Alert
    words: str


@dataclass(frozen=True)
class Changes:
    """What is to be written, in one transaction, and told."""

    opened: tuple[Alert, ...] = ()
    closed: tuple[Alert, ...] = ()
    tellings: tuple[Telling, ...] = ()


def decide(seen: Seen, open_alerts: Iterable[Open], repeat: int) -> Changes:
    """Compare what is wrong with what is known to be.

    :param repeat: seconds after which an alert that lasts is told again; 0: never.
    """
    known = {(one.alert.kind, one.alert.subject): one for one in open_alerts}
    wrong = _wrong(seen, known)
    looked = _looked_at(seen)
    at = written(seen.now)
    opened = tuple(alert for key, alert in wrong.items() if key not in known)
    closed = tuple(
        replace(one.alert, closed=at)
        for key, one in known.items()
        if key[0] in looked and key not in wrong
    )
    lasting = {key: one for key, one in known.items() if key in wrong or key[0] not in looked}
    lasting |= {_key(alert): Open(alert) for alert in opened}
    # As it is now: how late a domain is grows.
    current = [replace(one, alert=_now(one.alert, wrong)) for one in lasting.values()]
    tellings = [*_of_lasting(seen, current, known, repeat), *_of_closed(seen, closed, known)]
    return Changes(opened, closed, tuple(tellings))


def _looked_at(seen: Seen) -> set[str]:
    parts = {
        "rpo": seen.status,
        "host": seen.gone,
        "beat": seen.beatless,
        "failed": seen.failed,
    }
    return {kind for kind, part in parts.items() if part is not None}


def _wrong(seen: Seen, already: Mapping[Key, Open]) -> dict[Key, Alert]:
    """What is wrong now. What was patience to open is none to go on."""
    at = written(seen.now)
    found: list[Alert] = []
    for host, seconds in (seen.gone or {}).items():
        if seconds > HOST_PATIENCE or ("host", host) in already:
            found.append(_host_alert(host, at, seen.status))
    seconds, why = seen.beatless or (0.0, "")
    if why and (seconds > BEAT_PATIENCE or ("beat", BEAT) in already):
        found.append(_beat_alert(at, why))
    for domain in seen.status.domains if seen.status else ():
        if _violated(seen, domain, ("rpo", domain.uuid) in already):
            found.append(_rpo_alert(domain, at))
    found += _failures(seen, already, at)
    return {_key(alert): alert for alert in found}


def _violated(seen: Seen, domain: DomainStatus, already: bool) -> bool:
    """A domain without a good point has as long as its RPO from when its first backup was due."""
    if not domain.rpo or domain.health not in ("late", "never"):
        return False
    if domain.health == "late" or already:
        return True
    since = seen.since.get(domain.uuid)
    return since is not None and seen.now - since > timedelta(seconds=domain.rpo)


def _failures(seen: Seen, already: Mapping[Key, Open], at: str) -> list[Alert]:
    """A later slot that is just at work settles nothing: until it has succeeded, it is failing."""
    before = [one.alert for one in already.values() if one.alert.kind == "failed"]
    lasting = {a.subject: a for a in before if a.subject not in seen.settled}
    now = [_failed_alert(*found, at) for found in seen.failed or ()]
    alerts = {**lasting, **{alert.subject: alert for alert in now}}
    if seen.status is None:
        return list(alerts.values())
    # A slot that nothing will fill again is not waited for.
    meant = {domain.uuid: domain.policies for domain in seen.status.domains}
    return [alert for alert in alerts.values() if alert.policy in meant.get(alert.uuid, ())]


# -- who is told of what --------------------------------------------------------------------------


def _of_lasting(
    seen: Seen, current: Sequence[Open], known: Mapping[Key, Open], repeat: int
) -> Iterable[Telling]:
    gone = {one.alert.subject for one in current if one.alert.kind == "host"}
    storms = _storms(seen.now, known.values())
    late: dict[str, list[bool]] = {}
    for one in current:
        alert = one.alert
        if alert.kind == "rpo" and alert.host in gone and not one.told:
            late.setdefault(alert.host, []).append(_key(alert) in known)
        elif not one.told and alert.kind not in storms:
            yield Telling("opened", alert, alert.detail)
        elif one.told and repeat and _since(seen.now, one.told) >= repeat:
            yield Telling("lasting", alert, alert.detail)
    for one in current:
        known_before = late.get(one.alert.subject, []) if one.alert.kind == "host" else []
        # Once, when the first of them passes it: the repeats of the hypervisor's alert go on.
        if known_before and one.told and not any(known_before):
            count = _domains(len(known_before))
            words = f"{count} of hypervisor {one.alert.subject}, which is gone, passed the RPO."
            yield Telling("lasting", one.alert, words)


def _of_closed(seen: Seen, closed: Iterable[Alert], known: Mapping[Key, Open]) -> Iterable[Telling]:
    domains = {domain.uuid: domain for domain in seen.status.domains} if seen.status else {}
    for alert in closed:
        # Who was not told that it began is not told that it ended.
        if known[_key(alert)].told:
            yield Telling("recovered", alert, _recovery(alert, domains.get(alert.uuid)))


def _storms(now: datetime, known: Iterable[Open]) -> set[str]:
    """The kinds that were told of so often, and so lately, that the next are collected."""
    recent = [one for one in known if one.told and _since(now, one.told) < 3600]
    counts = Counter(one.alert.kind for one in recent)
    return {
        kind
        for kind, count in counts.items()
        if count >= STORM
        and min(_since(now, one.told) for one in recent if one.alert.kind == kind) < STORM_WAIT
    }


# -- in words -------------------------------------------------------------------------------------


def _host_alert(host: str, at: str, status: FleetStatus | None) -> Alert:
    info = next((h for h in status.hosts if h.host == host), None) if status else None
    seen = f" It was heard of last at {info.seen}." if info and info.seen else ""
    there = [d for d in status.domains if d.host == host] if status else []
    lost = f" {_domains(len(there))} of it cannot be backed up meanwhile." if there else ""
    return Alert(
        kind="host",
        subject=host,
        opened=at,
        detail=f"Hypervisor {host} is gone: its worker gives no sign of life.{seen}{lost}",
        mend=f"See whether {host} runs and reaches Redis, and start `virtvault worker` there.",
        host=host,
    )


def _beat_alert(at: str, why: str) -> Alert:
    return Alert(
        kind="beat",
        subject=BEAT,
        opened=at,
        detail=f"No beat leads, so nothing is scheduled: {why}.",
        mend="Start `virtvault beat` on one host or two; its log says why it ended.",
    )


def _rpo_alert(domain: DomainStatus, at: str) -> Alert:
    if domain.health == "never":
        what = "has no good point yet"
    else:
        what = f"has no newer good point than {domain.newest}, {in_words(domain.age)} old"
    words = f"Domain {domain.domain} on {domain.host} {what}; its RPO is {in_words(domain.rpo)}."
    if domain.error:
        words += f" {domain.error}"
    elif domain.state in ("unreachable", "absent"):
        words += f" It is {domain.state}."
    return Alert(
        kind="rpo",
        subject=domain.uuid,
        opened=at,
        detail=words,
        mend=domain.mend or f"`virtvault status {domain.uuid}` and `virtvault runs {domain.uuid}`.",
        domain=domain.domain,
        uuid=domain.uuid,
        host=domain.host,
        policy=domain.policies[0] if domain.policies else "",
    )


def _failed_alert(slot: SlotRecord, error: str, mend: str, at: str) -> Alert:
    tries = f" after {slot.attempt} tries" if slot.attempt > 1 else ""
    return Alert(
        kind="failed",
        subject=f"{slot.policy}/{slot.kind}/{slot.uuid}",
        opened=at,
        detail=f"The {slot.kind.replace('_', ' ')} of domain {slot.domain or slot.uuid} by policy "
        f"{slot.policy} for {slot.slot} failed{tries}: {error or slot.reason}",
        mend=mend or f"`virtvault runs {slot.uuid} --failed` tells more.",
        domain=slot.domain,
        uuid=slot.uuid,
        host=slot.host,
        policy=slot.policy,
    )


def _recovery(alert: Alert, domain: DomainStatus | None) -> str:
    lasted = in_words(_since(datetime.fromisoformat(alert.closed), alert.opened))
    if alert.kind == "rpo" and domain is not None and domain.health == "fresh":
        what = f"Domain {alert.domain} is fresh again: its newest good point is {domain.newest}."
    elif alert.kind == "rpo":
        what = f"Domain {alert.domain} is no longer held to an RPO."
    elif alert.kind == "host":
        what = f"Hypervisor {alert.subject} is back."
    elif alert.kind == "beat":
        what = "A beat leads again."
    else:
        what = f"What failed for {alert.domain or alert.uuid} by policy {alert.policy} is settled."
    return f"{what} That took {lasted}."


def _domains(count: int) -> str:
    return f"{count} domain" if count == 1 else f"{count} domains"


def _now(alert: Alert, wrong: Mapping[Key, Alert]) -> Alert:
    latest = wrong.get(_key(alert))
    return replace(latest, opened=alert.opened) if latest else alert


def _key(alert: Alert) -> Key:
    return alert.kind, alert.subject


def _since(now: datetime, moment: str) -> float:
    return (now - datetime.fromisoformat(moment)).total_seconds()
