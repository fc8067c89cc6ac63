"""The documents that other services are written against: generated, complete, and true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.web import api_document, api_schemas
from tasks.web.api_document import json_schemas, openapi
from tasks.web.api_operations import OPERATIONS
from virtvault import queues, schemas
from virtvault.models import Submission
from virtvault.routing import REQUESTS

DOCS = Path(__file__).parents[2] / "docs"
SCHEMAS = openapi()["components"]["schemas"]


def test_the_files_are_what_the_code_generates() -> None:
    said = "run scripts/generate-docs"
    assert json.loads((DOCS / "openapi.json").read_text()) == openapi(), said
    files = {path.name: json.loads(path.read_text()) for path in (DOCS / "schemas").iterdir()}
    assert files == json_schemas(), said


def properties(model: str, *names: str) -> list[Any]:
    return [SCHEMAS[model]["properties"][name] for name in names]


def test_what_the_schemas_demand_comes_through() -> None:
    assert all(one["additionalProperties"] is False for one in SCHEMAS.values())
    assert SCHEMAS["BackupRequest"]["required"] == ["domain"]
    sync, speed, repository, disks = properties(
        "BackupRequest", "sync", "speed", "repository", "disks"
    )
    assert sync["enum"] == ["auto", "full", "incremental", "top", "none"]
    assert (sync["default"], speed["type"], speed["minimum"]) == ("auto", "integer", 0)
    assert repository["maxLength"] == 100  # inside validate.And
    assert disks["items"]["pattern"] == "^[a-z]{2,4}[a-z0-9]{0,6}$"
    (devices,) = properties("RestoreRequest", "devices")
    assert devices["propertyNames"] == {"pattern": disks["items"]["pattern"]}
    (seconds,) = properties("VerifyRequest", "boot_seconds")
    assert (seconds["minimum"], seconds["maximum"]) == (1, 3600)
    rpo, rate = properties("Policy", "rpo", "speed")
    assert [one["type"] for one in rpo["anyOf"]] == ["integer", "string"]
    assert re.fullmatch(rpo["anyOf"][1]["pattern"], "1d12h")
    assert not re.fullmatch(rpo["anyOf"][1]["pattern"], "1y")
    assert re.fullmatch(rate["anyOf"][1]["pattern"], "50M")
    assert {"type": "null"} in properties("Task", "error")[0]["anyOf"]
    # Python's \Z is a Z elsewhere.
    assert r"\Z" not in json.dumps(openapi())
    # Each task's request is held to its own schema.
    rules = {
        rule["if"]["properties"]["task"]["const"]: rule["then"]["properties"]["request"]["$ref"]
        for rule in json_schemas()["submission.json"]["allOf"]
    }
    assert rules == {task: f"#/$defs/{model.__name__}" for task, model in REQUESTS.items()}
    assert set(rules) == set(queues.LONG_TASKS)


def references(made: Any) -> set[str]:
    if isinstance(made, dict):
        own = {made["$ref"]} if "$ref" in made else set()
        return own.union(*map(references, made.values()))
    return set().union(*map(references, made)) if isinstance(made, list) else set()


def test_nothing_is_referred_to_that_is_not_there() -> None:
    document = openapi("/prefix")
    assert references(document) <= {f"#/components/schemas/{name}" for name in SCHEMAS}
    assert document["servers"] == [{"url": "/prefix"}]
    for name, one in json_schemas().items():
        assert references(one) == {f"#/$defs/{used}" for used in one.get("$defs", {})}, name
    paths = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if method != "parameters"
    }
    assert paths == {(operation.method, operation.path) for operation in OPERATIONS}


def examples(document: str) -> list[tuple[str, Any]]:
    text = (DOCS / document).read_text()
    return [
        (name, json.loads(example))
        for name, example in re.findall(r"<!-- (\w+) -->\n```json\n(.*?)```", text, re.DOTALL)
    ]


@pytest.mark.parametrize("document", ["contract.md", "api.md"])
def test_the_examples_of_the_documents_hold(document: str) -> None:
    found = examples(document)
    assert len(found) == (DOCS / document).read_text().count("```json")
    bodies = {api_schemas.named(body): task for task, body in api_schemas.BODIES.items()}
    for name, example in found:
        if name == "Submission":
            schemas.load(REQUESTS[schemas.load(Submission, example).task], example["request"])
        elif name in bodies:
            beside = ("host", "callback")
            request = {k: v for k, v in example.items() if k not in beside}
            schemas.load(REQUESTS[bodies[name]], request)
            assert set(example) <= set(SCHEMAS[name]["properties"])
        else:
            schema = getattr(api_document.shapes, f"{name}Schema")
            schema().load(example)


def test_the_page_names_every_operation() -> None:
    text = (DOCS / "api.md").read_text()
    for operation in OPERATIONS:
        path = operation.path.replace("{id}", "ID")
        assert re.search(rf"{re.escape(path)}[`?]", text), path
