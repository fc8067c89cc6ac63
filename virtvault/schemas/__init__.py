"""marshmallow schemas of everything in :mod:`virtvault.models`, on the wire and on disk.

Unknown fields are refused, and every error names the field and the mend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from marshmallow import RAISE, ValidationError

from virtvault.errors import InvalidRequest, InvalidSettings
from virtvault.schemas import fleet, live, points, policies, requests, results
from virtvault.schemas.base import Strict
from virtvault.schemas.configuration import RepositorySettingsSchema, SettingsSchema
from virtvault.settings import Settings

__all__ = ["dump", "load", "load_settings"]

T = TypeVar("T")

# What is plain as it is, and most of what there is.
SIMPLE = frozenset({str, int, float, bool})

_SCHEMAS: dict[type[Any], Strict] = {
    schema.model: schema()
    for schema in (
        requests.BackupRequestSchema,
        requests.RestoreRequestSchema,
        requests.VerifyRequestSchema,
        requests.ServeRequestSchema,
        requests.PruneRequestSchema,
        requests.BitmapRequestSchema,
        requests.RetentionRulesSchema,
        requests.SubmissionSchema,
        points.PointSchema,
        points.PointStatusSchema,
        points.BootReportSchema,
        points.SourceReportSchema,
        points.VerdictSchema,
        results.BackupResultSchema,
        results.ExportResultSchema,
        results.RestoreResultSchema,
        results.VerifyResultSchema,
        results.ServeResultSchema,
        results.PruneResultSchema,
        live.ProgressSchema,
        live.HostInfoSchema,
        live.DomainInfoSchema,
        live.DiskInfoSchema,
        live.BitmapInfoSchema,
        live.BitmapChangesSchema,
        live.JobInfoSchema,
        live.CheckLineSchema,
        live.EventSchema,
        live.InventorySchema,
        live.RepositoryInfoSchema,
        policies.PolicySchema,
        policies.PolicyDocumentSchema,
        policies.PolicyVersionSchema,
        policies.PreviewSchema,
        fleet.RunInfoSchema,
        fleet.SlotRecordSchema,
        fleet.DomainStatusSchema,
        fleet.FleetStatusSchema,
        fleet.AlertSchema,
    )
}


def dump(value: Any) -> dict[str, Any]:
    """A dataclass of :mod:`virtvault.models` as JSON-able data."""
    if not is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"not a model: {value!r}")
    return {name: _plain(getattr(value, name)) for name in _names(type(value))}


@cache
def _names(model: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(model))


def _plain(value: Any) -> Any:
    # Not `asdict`, which copies all it finds: a fleet's status has a million of these.
    if value is None or type(value) in SIMPLE:
        return value
    model: type[Any] = type(value)
    if is_dataclass(model):
        return {name: _plain(getattr(value, name)) for name in _names(model)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def load(model: type[T], data: Any) -> T:
    """Make a ``model`` from untrusted data.

    :raises InvalidRequest: naming each wrong field and what it takes.
    """
    try:
        made: T = _SCHEMAS[model].load(data)
    except ValidationError as error:
        raise InvalidRequest(
            f"{_words(model.__name__)}: {_problems(error, model)}.", "Mend that and send it again."
        ) from error
    return made


def load_settings(data: Mapping[str, Any], where: str) -> Settings:
    """Settings from a parsed file and variables; ``where`` names their origin in errors.

    :raises InvalidSettings: naming each wrong key.
    """
    try:
        raw = SettingsSchema().load(dict(data), unknown=RAISE)
        repositories = {
            name: RepositorySettingsSchema().load({"name": name, **table})
            for name, table in raw.repositories.items()
        }
    except ValidationError as error:
        raise InvalidSettings(f"{where}: {_problems(error, Settings)}.", "Mend that.") from error
    values = {field.name: getattr(raw, field.name) for field in fields(raw)}
    return Settings(**{**values, "repositories": repositories})


def _problems(error: ValidationError, model: type[Any]) -> str:
    """``field: what is wrong`` for each problem; an unknown field is told the known ones."""
    found = []
    for name, messages in _flat(error.messages):
        text = " ".join(str(m).rstrip(".") for m in messages)
        if text == "Unknown field":
            known = ", ".join(sorted(field.name for field in fields(model)))
            text = f"unknown field (known: {known})"
        found.append(f"{name}: {text}")
    return "; ".join(found)


def _flat(messages: Any, prefix: str = "") -> list[tuple[str, list[str]]]:
    if isinstance(messages, dict):
        return [
            pair
            for key, value in messages.items()
            for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix.removeprefix("_schema.") or "request", list(messages))]


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
