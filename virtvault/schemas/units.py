"""Fields that take what a person writes, ``6h`` and ``50M``, beside plain numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError
from marshmallow import fields as f

__all__ = ["Duration", "Speed"]

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Duration(f.Field[int]):
    """Seconds, or ``90s``, ``30m``, ``6h``, ``2d``, ``1w``, also together: ``1d12h``."""

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any
    ) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        parts = re.findall(r"(\d+)([smhdw])", value) if isinstance(value, str) else []
        if not parts or "".join(map("".join, parts)) != value:
            raise ValidationError("must be a duration such as 90s, 30m, 6h, 2d or 1d12h")
        return sum(int(count) * SECONDS[unit] for count, unit in parts)


class Speed(f.Field[int]):
    """Bytes per second, or ``50M``, ``1G``; 1024-based."""

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **_: Any
    ) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        match = re.fullmatch(r"(\d+)([KMGT]?)", value) if isinstance(value, str) else None
        if match is None:
            raise ValidationError("must be bytes per second such as 50M or 1G, or 0 for no limit")
        return int(match[1]) * BYTES[match[2]]
