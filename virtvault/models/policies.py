"""Policies: which domains, when, how, where to, and what to keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from virtvault.models.requests import RetentionRules


@dataclass(frozen=True)
class Selector:
    """Which domains are meant: those that fit every kind of condition that is given.

    ``hosts`` and ``names`` are shell patterns of which one must fit, ``uuids`` of which one must
    be equal. ``labels`` maps labels to shell patterns of their values; all must fit. A selector
    without any condition means no domain.
    """

    hosts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """When work is due: at each time of ``cron``, or ``every`` so many seconds; one of both.

    Each such time is a *slot*. ``cron`` has five fields in ``timezone`` (an IANA name); ``every``
    counts from midnight UTC of 1970-01-01. In ``window`` seconds from the slot the work may
    begin, and failed backups are tried again; 0 means an hour for ``cron``, and ``every`` itself.
    Domains are spread evenly over the first ``spread`` seconds of it, each always at the same
    place; -1 means half the window, 0 all at once.
    """

    cron: str = ""
    every: int = 0
    timezone: str = "UTC"
    window: int = 0
    spread: int = -1


@dataclass(frozen=True)
class FullEvery:
    """When an incremental is made a full: after ``points`` points or ``days`` days; 0: never."""

    points: int = 0
    days: int = 0


@dataclass(frozen=True)
class Limits:
    """Scheduled tasks that may run at a time: on a hypervisor, per repository, in all; 0: any."""

    per_host: int = 0
    per_repository: int = 0
    total: int = 0


@dataclass(frozen=True)
class Policy:
    """One policy. ``select`` says which domains, ``exclude`` which of them not.

    ``disks`` empty means all; ``repository`` empty means each worker's default. ``rpo`` is the
    age in seconds that the newest good point may reach, 0 for none. ``sync`` is ``incremental``
    (a full where none is possible, or ``full_every`` says so) or ``full``. ``retention`` without
    any rule keeps all. ``late`` says what becomes of work that could not begin within its window:
    ``run`` it all the same, or ``skip`` it. ``verify`` reads the newest point back, ``boot_test``
    boots it. ``prune`` None means once a day where there is any retention. Among policies that
    mean the same domain and repository the one of the highest ``priority`` holds, else the
    first; waiting work of higher priority starts first.
    """

    name: str
    select: Selector
    schedule: Schedule
    exclude: Selector = Selector()
    disks: tuple[str, ...] = ()
    repository: str = ""
    sync: str = "incremental"
    full_every: FullEvery = FullEvery()
    retention: RetentionRules = field(default_factory=RetentionRules)
    rpo: int = 0
    freeze: str = "auto"
    speed: int = 0
    priority: int = 0
    limits: Limits = Limits()
    late: str = "run"
    verify: Schedule | None = None
    boot_test: Schedule | None = None
    prune: Schedule | None = None
    enabled: bool = True


@dataclass(frozen=True)
class PolicyDocument:
    """All policies, in the order of the file, and the limits that hold over them together."""

    policies: tuple[Policy, ...] = ()
    limits: Limits = Limits()


@dataclass(frozen=True)
class PolicyVersion:
    """One version of the policies. ``text`` is the YAML as applied, empty in listings.

    ``number`` counts from 1; 0 with no policies is what there is before the first is applied.
    """

    number: int
    applied: str
    by: str = ""
    comment: str = ""
    policies: int = 0
    text: str = ""
    document: PolicyDocument | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One run that a policy would start; ``kind`` is one of :data:`virtvault.models.KINDS`.

    ``slot`` is the time the schedule names, ``at`` that with the domain's place in the spread.
    """

    at: str
    slot: str
    kind: str
    policy: str
    domain: str
    uuid: str
    host: str
    repository: str


@dataclass(frozen=True)
class MatchedDomain:
    """A domain and the policies that mean it; ``shadowed`` maps policies to why they do not hold.

    ``kept`` and ``removed`` are the points that retention would keep and remove today, each with
    its reasons; looked at for a few hundred domains at most.
    """

    domain: str
    uuid: str
    host: str
    policies: tuple[str, ...] = ()
    shadowed: dict[str, str] = field(default_factory=dict)
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    removed: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """What policies would do from ``at`` on for ``hours``.

    ``runs`` are in time order; they and ``domains`` are cut at a limit: ``total_runs`` and
    ``protected`` count all, ``per_hour`` the runs of each kind in each hour. ``warnings`` name what
    looks unintended: a policy that means no domain, a repository that a host does not have.
    ``unprotected`` are the domains, as ``host/name``, that no policy means; ``loses`` those of them
    that one of the policies in force means, ``gains`` the other way round.
    """

    at: str
    hours: int
    domains: tuple[MatchedDomain, ...]
    unprotected: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    total_runs: int
    warnings: tuple[str, ...] = ()
    per_hour: dict[str, tuple[int, ...]] = field(default_factory=dict)
    protected: int = 0
    gains: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()
