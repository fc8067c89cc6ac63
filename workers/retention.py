"""Which points to keep: a pure decision that returns its reasons.

A point is kept where any rule wants it. ``last`` wants the newest points, ``hourly`` … ``yearly``
the newest of each hour … year (UTC; weeks are ISO weeks), counting back from now only over those
that have any point, ``within`` all that are not older. Beside the rules are kept: what is
protected, what is dated after now (a clock was wrong: its age is not known), and the newest point,
since the next incremental builds on it.

Rules are applied disk by disk, and a point is kept where it is wanted for one of its disks: a
later point of some disks takes no place of an earlier one of all.

A point that is ``bad`` or ``broken`` never takes a good one's place. It is looked at apart, as if
all were good, and kept where the rules would then want it: what is damaged today may be the only
copy of something, or may be mended. It goes when a good point in its place would go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from virtvault.models import RetentionRules

__all__ = ["TOP", "Candidate", "Decision", "decide"]

# What one bucket of each rule is called; points of one name are in one bucket.
BUCKETS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda at: f"{at:%Y-%m-%d %H}:00",
    "daily": lambda at: f"{at:%Y-%m-%d}",
    "weekly": lambda at: "{}-W{:02}".format(*at.isocalendar()[:2]),
    "monthly": lambda at: f"{at:%Y-%m}",
    "yearly": lambda at: f"{at:%Y}",
}
NEWEST = "newest: the next incremental builds on it"
# Behind the target of a disk that stands beside the chains: nothing builds on it.
TOP = "(top)"
UNITS = {"weeks": 7 * 86400, "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class Candidate:
    """One point of a domain, as the rules look at it.

    ``instant`` is UTC ISO 8601. ``protected`` is the reason, empty where it is not. ``state`` is
    that of :class:`virtvault.models.PointStatus`. ``disks`` are its targets, those that
    stand beside the chains with :data:`TOP` behind; empty: not told apart.
    """

    id: str
    instant: str
    protected: str = ""
    state: str = "ok"
    disks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """Whether a point is kept, and every reason for it; why not, where it is not."""

    keep: bool
    reasons: tuple[str, ...]


def decide(
    points: Sequence[Candidate], rules: RetentionRules, now: datetime
) -> dict[str, Decision]:
    """Keep or remove, for each point of one domain in one repository, newest first.

    :param points: in any order.
    :param rules: without any, every point is kept: to remove them all was never meant.
    :param now: aware.
    """
    instants = {point.id: datetime.fromisoformat(point.instant).astimezone(UTC) for point in points}
    ordered = sorted(points, key=lambda point: (instants[point.id], point.id), reverse=True)
    # One that is on its way out cannot be read: no rule can want it any more.
    staying = [point for point in ordered if point.state != "pruning"]
    past = [point for point in staying if instants[point.id] <= now]
    good = [point for point in past if point.state == "ok"]

    wanted: dict[str, dict[str, list[str]]] = {point.id: {} for point in points}
    for disk in sorted({disk for point in past for disk in point.disks or ("",)}):
        # Among the good ones alone; then each damaged one where it would be kept if it were good.
        for among in (good, past):
            having = [point for point in among if disk in (point.disks or ("",))]
            for point, reason in _wanted(having, instants, rules, now, builds=TOP not in disk):
                if among is good:
                    wanted[point.id].setdefault(reason, []).append(disk)
                elif point.state != "ok":
                    wanted[point.id].setdefault(f"{reason}, though {point.state}", []).append(disk)
    return {
        point.id: _decision(point, wanted[point.id], rules, future=instants[point.id] > now)
        for point in ordered
    }


def _wanted(
    points: Sequence[Candidate],
    instants: Mapping[str, datetime],
    rules: RetentionRules,
    now: datetime,
    *,
    builds: bool,
) -> Iterator[tuple[Candidate, str]]:
    """The points, newest first, that one of the rules wants, and why.

    :param builds: whether a later point builds on the newest of these.
    """
    if points:
        good = points[0].state == "ok"
        yield points[0], NEWEST if good and builds else "newest there is"
    for number, point in enumerate(points[: rules.last], 1):
        yield point, f"last {number} of {rules.last}"
    for rule, name_of in BUCKETS.items():
        count = getattr(rules, rule)
        newest: dict[str, Candidate] = {}
        for point in points:
            newest.setdefault(name_of(instants[point.id]), point)
        for number, (name, point) in enumerate(list(newest.items())[:count], 1):
            yield point, f"{rule} {number} of {count} ({name})"
    for point in points:
        if rules.within and now - instants[point.id] <= timedelta(seconds=rules.within):
            yield point, f"within {_span(rules.within)}"


def _decision(
    point: Candidate, wanted: Mapping[str, list[str]], rules: RetentionRules, *, future: bool
) -> Decision:
    if point.state == "pruning":
        return Decision(False, ("its removal has begun",))
    reasons = [f"protected: {point.protected}"] if point.protected else []
    if rules == RetentionRules():
        reasons.append("no rules were given")
    if future:
        reasons.append(f"dated after now ({point.instant}): a clock is wrong, its age not known")
    for reason, disks in wanted.items():
        partly = len(disks) < len(point.disks)
        reasons.append(f"{reason} for {', '.join(disks)}" if partly else reason)
    return Decision(bool(reasons), tuple(reasons) or ("no rule wants it",))


def _span(seconds: int) -> str:
    unit, length = next((u, s) for u, s in UNITS.items() if seconds % s == 0)
    count = seconds // length
    return f"{count} {unit if count > 1 else unit.removesuffix('s')}"
