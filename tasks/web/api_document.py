"""The OpenAPI document and the JSON Schemas, both made of the marshmallow schemas.

What a field's own validators say comes through; what a schema checks across its fields cannot be
said in JSON Schema, and is in the description of its model.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, validate
from marshmallow import fields as f

from tasks.web import api_schemas as shapes
from tasks.web.api_operations import OPERATIONS, Operation
from virtvault import queues, schemas
from virtvault.routing import REQUESTS
from virtvault.schemas import fleet, live, points, policies, requests, results
from virtvault.schemas.units import Duration, Speed, Spread

__all__ = ["PUBLISHED", "json_schemas", "openapi"]

VERSION = "1"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# What goes over the wire to and from other services, each a file of docs/schemas.
PUBLISHED: tuple[type[Schema], ...] = (
    requests.SubmissionSchema,
    shapes.SubmittedSchema,
    live.ProgressSchema,
    results.BackupResultSchema,
    results.ExportResultSchema,
    results.RestoreResultSchema,
    results.VerifyResultSchema,
    results.ServeResultSchema,
    results.PruneResultSchema,
    fleet.RunInfoSchema,
    fleet.AlertSchema,
    points.PointSchema,
    points.PointStatusSchema,
    policies.PolicyDocumentSchema,
)
_REQUESTS = {
    queues.BACKUP: requests.BackupRequestSchema,
    queues.RESTORE: requests.RestoreRequestSchema,
    queues.VERIFY: requests.VerifyRequestSchema,
    queues.SERVE: requests.ServeRequestSchema,
    queues.PRUNE: requests.PruneRequestSchema,
}
DURATION = {"type": "string", "pattern": "^([0-9]{1,12}[smhdw])+$"}
UNITS: dict[type[f.Field[Any]], dict[str, Any]] = {
    Duration: {
        "anyOf": [{"type": "integer", "minimum": 0}, DURATION],
        "description": "Seconds, or a duration such as 90s, 30m, 6h, 2d or 1d12h.",
    },
    Spread: {
        "anyOf": [{"type": "integer", "minimum": -1}, DURATION],
        "description": "A duration, or -1: half the window.",
    },
    Speed: {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]{1,19}[KMGT]?$"},
        ],
        "description": "Bytes per second, or such as 50M or 1G (1024-based); 0: no limit.",
    },
}


def openapi(prefix: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 document of the API served below ``prefix``."""
    spec = _spec(prefix)
    for operation in OPERATIONS:
        path = operation.path
        spec.path(path=path, operations={operation.method.lower(): _operation(spec, operation)})
    return _finished(spec)


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas (2020-12) by file name, each with all that it refers to."""
    spec = _spec("")
    all_of_them = _finished(spec)["components"]["schemas"]
    found = {}
    for schema in PUBLISHED:
        name = shapes.named(schema)
        made = {"$schema": DIALECT, "title": name, **copy.deepcopy(all_of_them[name])}
        used = _used(made, all_of_them)
        if used:
            made["$defs"] = {other: copy.deepcopy(all_of_them[other]) for other in sorted(used)}
        found[f"{_dashed(name)}.json"] = _moved(made)
    return found


# -- inside -----------------------------------------------------------------------------------


def _spec(prefix: str) -> APISpec:
    plugin = MarshmallowPlugin(schema_name_resolver=_name)
    spec = APISpec(
        title="virtvault",
        version=VERSION,
        openapi_version="3.1.0",
        info={
            "description": "Live backup and restore of QEMU/KVM disks. Times are UTC, ISO 8601; "
            "sizes are bytes, speeds bytes per second. docs/api.md says more."
        },
        servers=[{"url": prefix or "/"}],
        security=[{"token": []}],
        plugins=[plugin],
    )
    converter: Any = plugin.converter
    for unit in UNITS:
        converter.field_mapping[unit] = (None, None)
    for more in (_unit, _nested_validators, _keys, _pattern):
        converter.add_attribute_function(more)
    spec.components.security_scheme("token", {"type": "http", "scheme": "bearer"})
    wanted: tuple[type[Schema], ...] = (*_REQUESTS.values(), *PUBLISHED, shapes.ErrorSchema)
    for schema in wanted:
        if shapes.named(schema) not in spec.components.schemas:
            spec.components.schema(shapes.named(schema), schema=schema)
    return spec


def _unit(_: Any, field: f.Field[Any], **__: Any) -> dict[str, Any]:
    return copy.deepcopy(UNITS.get(type(field), {}))


def _nested_validators(self: Any, field: f.Field[Any], *, ret: dict[str, Any]) -> dict[str, Any]:
    """What stands inside ``validate.And``, which apispec does not open."""
    flat = [
        inner
        for one in field.validators
        if isinstance(one, validate.And)
        for inner in one.validators
    ]
    if not flat:
        return {}
    opened = copy.copy(field)
    opened.validators = flat
    found: dict[str, Any] = {
        **self.field2choices(opened),
        **self.field2range(opened, ret=ret),
        **self.field2length(opened),
        **self.field2pattern(opened),
    }
    return found


def _keys(self: Any, field: f.Field[Any], **_: Any) -> dict[str, Any]:
    """What the keys of an object must be."""
    keys = getattr(field, "key_field", None) if isinstance(field, f.Dict) else None
    found = self.field2property(keys) if keys is not None and keys.validators else {}
    found.pop("type", None)
    return {"propertyNames": found} if found else {}


def _pattern(_: Any, __: f.Field[Any], *, ret: dict[str, Any]) -> dict[str, Any]:
    """Python's end of text, as ECMAScript spells it."""
    return {"pattern": ret["pattern"].replace(r"\Z", "$")} if "pattern" in ret else {}


def _operation(spec: APISpec, operation: Operation) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": shapes.ErrorSchema}}}
    status = "202" if operation.method == "POST" else "200"
    kind = "text/event-stream" if operation.way == "stream" else "application/json"
    answer: dict[str, Any] = {
        "description": operation.summary,
        "content": {kind: {"schema": operation.gives}},
    }
    made: dict[str, Any] = {
        "summary": operation.summary,
        "description": f"Role: {operation.role}.",
        "parameters": [
            {"in": "path", "name": name, "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", operation.path)
        ],
        "responses": {status: answer, "default": {"description": "Why not.", **error}},
    }
    if operation.query is not shapes.NothingSchema:
        made["parameters"].append({"in": "query", "schema": operation.query})
    if operation.task:
        body = shapes.BODIES[operation.task]
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        made["parameters"].append(
            {
                "in": "header",
                "name": "Idempotency-Key",
                "description": "The task's id: the same request again is the same task.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{7,99}$"},
            }
        )
        answer["headers"] = {"Location": {"description": "The task.", "schema": {"type": "string"}}}
    return made


def _finished(spec: APISpec) -> dict[str, Any]:
    """The document, with what the models say themselves: descriptions and defaults."""
    made: dict[str, Any] = spec.to_dict()
    found = made["components"]["schemas"]
    for schema in _subclasses(Schema):
        plain = found.get(shapes.named(schema))
        if plain is None or not schema.__module__.startswith(("virtvault.", "tasks.")):
            continue
        model = getattr(schema, "model", None)
        said = inspect.getdoc(model or schema) or ""
        if said:
            plain.setdefault("description", _prose(said))
        if is_dataclass(model):
            for name, default in _defaults(model):
                if name in plain["properties"]:
                    plain["properties"][name].setdefault("default", default)
    submission = found["Submission"]
    submission["allOf"] = [
        {
            "if": {"properties": {"task": {"const": task}}},
            "then": {"properties": {"request": {"$ref": f"#/components/schemas/{model.__name__}"}}},
        }
        for task, model in REQUESTS.items()
    ]
    return made


def _subclasses(base: type[Schema]) -> Iterator[type[Schema]]:
    for one in base.__subclasses__():
        yield one
        yield from _subclasses(one)


def _name(schema: Any) -> str:
    return shapes.named(schema if isinstance(schema, type) else type(schema))


def _defaults(model: Any) -> Iterator[tuple[str, Any]]:
    for one in fields(model):
        default = one.default if one.default is not MISSING else one.default_factory
        if default is MISSING:
            continue
        value = default() if one.default is MISSING else default
        if is_dataclass(value) and not isinstance(value, type):
            value = schemas.dump(value)
        yield one.name, list(value) if isinstance(value, tuple) else value


def _prose(said: str) -> str:
    said = re.sub(r":\w+:`[~.]?([^`]+)`", r"`\1`", said).replace("``", "`")
    return re.sub(r"(?<!\n)\n(?!\n)", " ", said)


def _used(made: Any, known: dict[str, Any], found: set[str] | None = None) -> set[str]:
    """The names of all that ``made`` refers to, and what that refers to."""
    found = set() if found is None else found
    if isinstance(made, dict):
        name = str(made.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found.add(name)
            _used(known[name], known, found)
        for value in made.values():
            _used(value, known, found)
    elif isinstance(made, list):
        for value in made:
            _used(value, known, found)
    return found


def _moved(made: Any) -> Any:
    if isinstance(made, dict):
        return {
            key: value.replace("#/components/schemas/", "#/$defs/")
            if key == "$ref"
            else _moved(value)
            for key, value in made.items()
        }
    return [_moved(value) for value in made] if isinstance(made, list) else made


def _dashed(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
