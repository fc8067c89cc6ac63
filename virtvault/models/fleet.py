"""The fleet as the central tier knows it: runs, slots, freshness, alerts."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtvault.models.live import HostInfo


@dataclass(frozen=True)
class RunInfo:
    """One long task that ended, or (``state`` ``running``) is at work.

    ``state``: ``running``, ``complete``, ``failed``, ``cancelled``. ``kind`` is the task's name
    without ``virtvault.``; ``policy`` and ``slot`` are empty where somebody asked by hand.
    ``sync`` is a backup's, once it has ended, and ``boot`` of a verify that boots the points.
    ``seconds`` from start to finish; ``transferred`` and ``stored`` the bytes of a backup.
    """

    task_id: str
    kind: str
    host: str
    state: str
    started: str
    finished: str = ""
    domain: str = ""
    uuid: str = ""
    repository: str = ""
    policy: str = ""
    slot: str = ""
    point: str = ""
    sync: str = ""
    seconds: float = 0.0
    transferred: int = 0
    stored: int = 0
    error: str = ""
    mend: str = ""


@dataclass(frozen=True)
class SlotRecord:
    """What became of one slot of one policy for one domain.

    ``state``: ``dispatched`` (its task was sent), ``skipped`` (the previous one was still at
    work, or the window had passed), ``missed`` (no beat ran, or limits held it, until a later
    slot took its place), ``failed`` (its last try failed). ``attempt`` counts from 1. ``reason``
    says it in a sentence.
    """

    policy: str
    uuid: str
    kind: str
    slot: str
    state: str
    at: str
    attempt: int = 1
    task_id: str = ""
    host: str = ""
    domain: str = ""
    repository: str = ""
    reason: str = ""


@dataclass(frozen=True)
class DomainStatus:
    """One domain as an operator asks for it.

    ``state`` is libvirt's word, ``unreachable`` where its hypervisor is gone, ``absent`` where no
    hypervisor has the domain any more. ``health``: ``fresh`` (newest good point within the RPO),
    ``late`` (older), ``never`` (protected, no good point yet), ``unprotected`` (no policy means
    it), ``no rpo`` (protected without one). ``age`` of the newest good point in seconds, -1
    without one. ``chain`` counts the points that restore of the newest needs. ``running`` is the
    task at work on it.
    """

    domain: str
    uuid: str
    host: str
    state: str
    health: str
    labels: dict[str, str] = field(default_factory=dict)
    policies: tuple[str, ...] = ()
    rpo: int = 0
    newest: str = ""
    instant: str = ""
    age: float = -1.0
    chain: int = 0
    points: int = 0
    stored: int = 0
    running: str = ""
    error: str = ""
    mend: str = ""
    error_at: str = ""


@dataclass(frozen=True)
class FleetTotals:
    """The fleet in numbers. ``domains`` counts those that hypervisors have or had last."""

    hosts: int = 0
    hosts_gone: int = 0
    domains: int = 0
    fresh: int = 0
    late: int = 0
    never: int = 0
    no_rpo: int = 0
    unprotected: int = 0
    unreachable: int = 0
    failing: int = 0
    running: int = 0
    points: int = 0
    stored: int = 0


@dataclass(frozen=True)
class FleetStatus:
    """The whole fleet at ``at``. ``beat`` says which beat leads and since when, empty: none."""

    at: str
    totals: FleetTotals
    domains: tuple[DomainStatus, ...]
    hosts: tuple[HostInfo, ...]
    policy_version: int = 0
    beat: str = ""


@dataclass(frozen=True)
class Alert:
    """Something that is wrong and was (or will be) told.

    ``kind``: ``failed`` (a scheduled run's last try failed), ``rpo`` (newest good point older than
    its RPO), ``host`` (hypervisor gone), ``beat`` (no beat leads), ``notice`` (somebody took none
    for a day). ``closed`` is empty while it lasts.
    """

    kind: str
    subject: str
    opened: str
    detail: str
    mend: str = ""
    closed: str = ""
    domain: str = ""
    uuid: str = ""
    host: str = ""
    policy: str = ""
