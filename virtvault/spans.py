"""Spans of time as people say them."""

from __future__ import annotations

__all__ = ["in_words"]

# The unit from so many seconds on: what is told is never below two of a unit but seconds.
UNITS = ((172_800, 86_400, "d"), (7_200, 3_600, "h"), (120, 60, "min"))


def in_words(seconds: float) -> str:
    """``45 s``, ``12 min``, ``26 h``, ``3.5 d``: two digits are enough to act upon."""
    for least, unit, name in UNITS:
        if seconds >= least:
            count = seconds / unit
            digits = 1 if count < 10 else 0
            return f"{count:.{digits}f}".removesuffix(".0") + f" {name}"
    return f"{seconds:.0f} s"
