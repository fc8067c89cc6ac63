"""Fields that take what a person writes, ``6h`` and ``50M``, beside plain numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError
from marshmallow import fields as f

__all__ = ["Duration", "Speed", "Spread"]

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# What is longer is a slip of the pen, and dates end somewhere.
LONGEST = 100 * 366 * 86400
# QEMU takes a job's speed as a signed 64-bit number.
FASTEST = 2**63 - 1
BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Duration(f.Field[int]):
    """Seconds, or ``90s``, ``30m``, ``6h``, ``2d``, ``1w``, also together: ``1d12h``."""

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any
    ) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            seconds = value
        else:
            text = value if isinstance(value, str) else ""
            parts = re.findall(r"([0-9]{1,12})([smhdw])", text)
            if not parts or "".join(map("".join, parts)) != text:
                raise ValidationError("must be a duration such as 90s, 30m, 6h, 2d or 1d12h")
            seconds = sum(int(count) * SECONDS[unit] for count, unit in parts)
        if seconds > LONGEST:
            raise ValidationError("must be 100 years at most")
        return seconds


class Spread(Duration):
    """A duration, or -1: half the window."""

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> int:
        if value == -1 and not isinstance(value, bool):
            return -1
        return super()._deserialize(value, attr, data, **kwargs)


class Speed(f.Field[int]):
    """Bytes per second, or ``50M``, ``1G``; 1024-based."""

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any
    ) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            rate = value
        else:
            text = value if isinstance(value, str) else ""
            match = re.fullmatch(r"(0|[1-9][0-9]{0,18})([KMGT]?)", text)
            if match is None:
                raise ValidationError(
                    "must be bytes per second such as 50M or 1G, or 0 for no limit"
                )
            rate = int(match[1]) * BYTES[match[2]]
        if rate > FASTEST:
            raise ValidationError("is more than QEMU can count; 0 is no limit")
        return rate
