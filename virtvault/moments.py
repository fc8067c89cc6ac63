"""Times as models carry them: UTC, ISO 8601, to the millisecond, with a ``Z``."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["now", "written"]


def written(moment: datetime) -> str:
    """An aware time."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    """This moment."""
    return written(datetime.now(UTC))
