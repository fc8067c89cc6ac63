"""Strict schemas, and the fields and patterns they share."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, post_load, validate
from marshmallow import fields as f

# A name that becomes a queue or a directory name: no separator, no leading dot or dash.
NAME = validate.Regexp(
    r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z", error="use letters, digits, '_', '.', '-'"
)


TARGET = validate.Regexp(r"^[a-z]{2,4}[a-z0-9]{0,6}\Z", error="use a target name such as vda")


POINT = validate.Regexp(
    r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\Z", error="use a point id as `virtvault points` shows it"
)


FILE = validate.Regexp(r"^[A-Za-z0-9_]+\.qcow2\Z", error="must be a plain file name")


# libvirt forbids '/' and newlines in names; an optional host/ before it is ours.
DOMAIN = validate.Regexp(r"^[^\n]{1,300}\Z", error="must be a domain name, uuid or host/name")


MOMENT = validate.Regexp(
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z\Z",
    error="must be UTC to the millisecond, such as 2026-01-31T04:05:06.123Z",
)


NOT_NEGATIVE = validate.Range(min=0, error="must not be negative")


PARENT = validate.Regexp(
    r"^([0-9]{8}T[0-9]{6}Z-[0-9a-f]{8})?\Z", error="must be a point id or empty"
)


class Strict(Schema):
    """A schema that refuses unknown fields and makes its dataclass."""

    model: type[Any]

    class Meta:
        unknown = RAISE

    @post_load
    def _make(self, data: dict[str, Any], **_: Any) -> Any:
        return self.model(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def text(**kwargs: Any) -> f.String:
    return f.String(required=True, **kwargs)


def size() -> f.Integer:
    return f.Integer(required=True, strict=True, validate=NOT_NEGATIVE)
