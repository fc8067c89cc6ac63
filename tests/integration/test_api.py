"""The REST API as another service meets it: real Flower, Redis, central, worker and guest."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tasks.ends import tell
from tasks.web.api_operations import OPERATIONS
from tests.integration.conftest import MIB
from tests.integration.served import PASSWORD, Served, served
from tests.integration.test_flower import until
from virtvault.models import RunInfo
from virtvault.tokens import TokenFile

POINT = "20261123T120000Z-0123abcd"


@pytest.fixture(scope="module")
def house() -> Iterator[Served]:
    with served() as made:
        yield made


def said(answer: httpx.Response, status: int, error: str) -> dict[str, Any]:
    """An error's document, which must be of the one shape."""
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    assert found["error"] == error, found
    assert set(found) - {"fields"} == {"error", "message", "mend"}
    assert found["message"]
    assert found["mend"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert not {"set-cookie", "access-control-allow-origin"} & set(answer.headers)
    return found


def test_a_backup_from_its_submission_to_its_point(house: Served) -> None:
    key, body = str(uuid.uuid4()), {"domain": house.guest.name, "sync": "auto"}
    with house.http("operator") as http:
        answer = http.post("/v1/backups", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.text
        assert answer.headers["location"] == f"/v1/tasks/{key}"
        host = house.stack.host
        assert answer.json() == {
            "task_id": key,
            "task": "virtvault.backup",
            "host": host,
            "queue": f"hv.{host}",
        }
        # The caller saw nothing of the answer, and sends it again.
        again = http.post("/v1/backups", json=body, headers={"Idempotency-Key": key})
        assert (again.status_code, again.json()) == (202, answer.json())
        other = {**body, "sync": "full"}
        refused = http.post("/v1/backups", json=other, headers={"Idempotency-Key": key})
        assert f"{key} is the id of another" in said(refused, 422, "InvalidRequest")["message"]

    with house.http("viewer") as http:
        task = http.get(f"/v1/tasks/{key}/wait?seconds=40").json()
        assert (task["state"], task["error"], task["host"]) == ("SUCCESS", None, host)
        assert http.get(f"/v1/tasks/{key}").json() == task
        point = task["result"]["point"]
        (listed,) = http.get("/v1/points", params={"domain": house.guest.name}).json()["items"]
        assert listed["point"]["id"] == point
        assert http.get(f"/v1/points/{point}").json()["point"] == listed["point"]
        until(
            lambda: (
                [
                    run["state"]
                    for run in http.get(f"/v1/runs?domain={house.guest.name}").json()["items"]
                    if run["task_id"] == key
                ]
                == ["complete"]
            ),
            "its run",
        )
        # The hypervisor's inventory reaches the catalog in its own time.
        found = until(
            lambda: (a := http.get(f"/v1/domains/{house.guest.name}")).is_success and a.json(),
            "the domain",
            30,
        )
        assert (found["newest"], found["host"]) == (point, host)
        status = http.get("/v1/status").json()
        assert "domains" not in status
        assert [one["host"] for one in status["hosts"]] == [host]
        assert http.get("/v1/alerts").json() == {"items": [], "next": None}

        # All that is answered is as the OpenAPI document has it.
        ids = {"tasks": key, "points": point, "domains": house.guest.name}
        for operation in OPERATIONS:
            if operation.method == "GET" and operation.way != "stream":
                path = operation.path.replace("{id}", ids.get(operation.path.split("/")[2], ""))
                query = {"domain": house.guest.name} if path == "/v1/points" else {}
                operation.gives().load(http.get(path, params=query).json())

        # Redis forgets everything: how it ended is known all the same.
        house.stack.redis.flush()
        late = http.get(f"/v1/tasks/{key}").json()
        assert (late["state"], late["task"], late["result"]) == (
            "SUCCESS",
            "virtvault.backup",
            None,
        )
        until(lambda: http.get("/v1/hosts").json()["items"], "the hypervisor's word")


def test_domains_are_listed_page_by_page(house: Served) -> None:
    with house.http("viewer") as http:

        def names(**query: Any) -> list[str]:
            found: list[str] = []
            offset: int | None = 0
            while offset is not None:
                page = http.get("/v1/domains", params={**query, "limit": 1, "offset": offset})
                assert page.status_code == 200, page.text
                found += [one["domain"] for one in page.json()["items"]]
                offset = page.json()["next"]
            return found

        until(lambda: names(name=house.guest.name) == [house.guest.name], "the domain", 30)
        assert house.guest.name in names(health="unprotected")
        assert names(name=house.guest.name, host="elsewhere") == []
        assert names(label="that-nobody-has") == []


def test_a_cancelled_backup_says_so(house: Served) -> None:
    with house.http("operator") as http:
        slow = {"domain": house.guest.name, "sync": "full", "speed": MIB}
        task = http.post("/v1/backups", json=slow).headers["location"]
        until(lambda: http.get(task).json()["progress"], "progress")
        with house.http("viewer") as viewer:
            said(viewer.post(f"{task}/cancel"), 403, "Forbidden")
            # Waiting has an end of its own.
            running = viewer.get(f"{task}/wait?seconds=0").json()
            assert (running["state"], running["result"]) == ("STARTED", None)
        answer = http.post(f"{task}/cancel")
        assert answer.status_code == 202, answer.text
        assert answer.json()["message"]
        ended = http.get(f"{task}/wait?seconds=40").json()
        assert (ended["state"], ended["error"]["error"]) == ("REVOKED", "Cancelled")
        assert ended["error"]["mend"]
        said(http.post(f"{task}/cancel"), 404, "UnknownTask")


def test_a_listener_hears_of_each_end(house: Served) -> None:
    with house.http("viewer") as http, http.stream("GET", "/v1/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        with house.http("operator") as operator:
            task = operator.post("/v1/backups", json={"domain": house.guest.name}).json()["task_id"]
        for line in lines:
            if line.startswith("data: ") and task in line:
                break
        run = json.loads(line.removeprefix("data: "))
        assert (run["kind"], run["domain"], run["state"]) == (
            "backup",
            house.guest.name,
            "complete",
        )


def test_a_listener_whose_token_was_removed_hears_no_more(house: Served) -> None:
    tokens = TokenFile(house.stack.directory / "tokens.json")
    secret = tokens.add("gone-soon", "viewer", datetime.now(UTC))
    with (
        house.http() as http,
        http.stream("GET", "/v1/events", headers={"Authorization": f"Bearer {secret}"}) as stream,
        house.stack.redis.client() as client,
    ):
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        tokens.remove("gone-soon")
        tell(client, RunInfo("t1", "backup", "hv1", "complete", "2026-03-01T12:00:00.000Z"))
        assert not any(line.startswith("data: ") for line in lines)


def test_only_who_may_have_disks_served_sees_where(house: Served) -> None:
    with house.http("restore") as restore, house.http("viewer") as viewer:
        body = {"domain": house.guest.name, "sync": "none"}
        task = restore.post("/v1/backups", json=body).headers["location"]
        shown = until(
            lambda: ((p := restore.get(task).json()["progress"]) and p["exports"]) or None,
            "the export",
        )
        assert shown["vda"].startswith("nbd+unix:")
        assert viewer.get(task).json()["progress"]["exports"] == {}
        assert restore.post(f"{task}/cancel").status_code == 202


ROLES = ("viewer", "operator", "restore")
# What each role may not: (method, path, body) → the role that is needed.
NEEDS: list[tuple[str, str, dict[str, Any] | None, str]] = [
    ("POST", "/v1/backups", {"domain": "nobody"}, "operator"),
    ("POST", "/v1/backups", {"domain": "nobody", "sync": "none"}, "restore"),
    ("POST", "/v1/verifies", {"points": [POINT]}, "operator"),
    ("POST", "/v1/restores", {"point": POINT, "to": "x"}, "restore"),
    ("POST", "/v1/exports", {"point": POINT}, "restore"),
    ("POST", "/v1/prunes", {"points": [POINT], "dry_run": True}, "operator"),
    ("POST", "/v1/prunes", {"points": [POINT]}, "restore"),
    ("POST", "/v1/tasks/nobodys-task/cancel", None, "operator"),
    *(
        ("GET", f"/v1/{path}", None, "viewer")
        for path in ("hosts", "status", "domains", "runs", "alerts", f"points/{POINT}")
    ),
]


def test_what_each_role_may(house: Served) -> None:
    for method, path, body, needed in NEEDS:
        for role in ROLES:
            with house.http(role) as http:
                answer = http.request(method, path, json=body)
            if ROLES.index(role) < ROLES.index(needed):
                message = said(answer, 403, "Forbidden")["message"]
                # A viewer is stopped before the body is read.
                wanted = "operator" if role == "viewer" and needed != "viewer" else needed
                if path in ("/v1/restores", "/v1/exports"):
                    wanted = "restore"
                assert f"needs the role {wanted}; token {role} has {role}" in message, path
            else:
                # Let in: nothing of that name is there.
                assert answer.status_code in (200, 404, 422), (path, role, answer.text)


def test_who_has_no_good_token_is_told_nothing(house: Served) -> None:
    with house.http() as http:
        file = TokenFile(house.stack.client().settings.tokens)
        then = datetime.now(UTC) - timedelta(hours=2)
        expired = file.add("expired", "restore", then, 3600)
        removed = file.add("removed", "restore", then)
        good = {"Authorization": f"Bearer {removed}"}
        assert http.get("/v1/hosts", headers=good).status_code == 200
        file.remove("removed")
        for header in (
            None,
            "Bearer",
            "Bearer vv_",
            f"Bearer {expired}",
            f"Bearer {removed}",
            f"Basic {house.tokens['restore']}",
        ):
            headers = {"Authorization": header} if header else {}
            for page in ("/v1/hosts", "/v1/nothing", f"/v1/points/{POINT}", "/v1"):
                answer = http.get(page, headers=headers)
                said(answer, 401, "Unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
        # Flower's password is none of ours, and a token is none of Flower's.
        user, _, password = PASSWORD.partition(":")
        said(http.get("/v1/hosts", auth=(user, password)), 401, "Unauthorized")
        bearer = {"Authorization": f"Bearer {house.tokens['restore']}"}
        for page in ("/tasks", "/api/tasks", "/backups"):
            assert http.get(page, headers=bearer).status_code == 401, page
            assert http.get(page, auth=(user, password)).status_code == 200, page
        # One that others could have read lets nobody in.
        path = house.stack.client().settings.tokens
        path.chmod(0o644)
        try:
            refused = said(http.get("/v1/hosts", headers=bearer), 503, "InvalidSettings")
            assert str(house.stack.directory) not in json.dumps(refused)
            assert "chmod 600" in house.stack.log("flower")
        finally:
            path.chmod(0o600)
        assert http.get("/v1/hosts", headers=bearer).status_code == 200


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "error", "words"),
    [
        ("POST", "/v1/backups", {"json": {}}, 422, "InvalidRequest", "domain: Missing"),
        ("POST", "/v1/backups", {"json": {"domain": 1}}, 422, "InvalidRequest", "domain: "),
        (
            "POST",
            "/v1/backups",
            {"json": {"domain": "x", "y": 1}},
            422,
            "InvalidRequest",
            "y: unkn",
        ),
        (
            "POST",
            "/v1/backups",
            {"json": {"domain": "x", "host": 1}},
            422,
            "InvalidRequest",
            "host",
        ),
        ("POST", "/v1/backups", {"json": {"domain": "x"}}, 422, "UnknownDomain", "'x'"),
        (
            "POST",
            "/v1/backups",
            {"json": {"domain": "x", "callback": "http://a/b"}},
            422,
            "InvalidRequest",
            "callback: ",
        ),
        (
            "POST",
            "/v1/backups",
            {"json": {"domain": "x"}, "headers": {"Idempotency-Key": "a/b"}},
            422,
            "InvalidRequest",
            "Idempotency-Key: ",
        ),
        ("POST", "/v1/backups", {"json": [1]}, 400, "BadRequest", "no JSON object"),
        ("POST", "/v1/backups", {"content": "{", "headers": JSON}, 400, "BadRequest", "not JSON"),
        (
            "POST",
            "/v1/backups",
            {"content": "[" * 60_000, "headers": JSON},
            400,
            "BadRequest",
            "not JSON",
        ),
        (
            "POST",
            "/v1/backups",
            {"content": '{"domain": "a", "domain": "b"}', "headers": JSON},
            400,
            "BadRequest",
            "twice",
        ),
        (
            "POST",
            "/v1/backups",
            {"content": '{"domain": "a", "speed": NaN}', "headers": JSON},
            400,
            "BadRequest",
            "NaN",
        ),
        (
            "POST",
            "/v1/backups",
            {"data": {"domain": "x"}},
            415,
            "UnsupportedMediaType",
            "urlencoded",
        ),
        ("POST", "/v1/backups", {"content": "{}"}, 415, "UnsupportedMediaType", "of no type"),
        (
            "POST",
            "/v1/backups",
            {"content": "x" * 70_000, "headers": JSON},
            413,
            "TooLarge",
            "65536 bytes",
        ),
        ("GET", "/v1/backups", {}, 405, "MethodNotAllowed", "GET is not possible"),
        ("DELETE", "/v1/hosts", {}, 405, "MethodNotAllowed", "DELETE is not possible"),
        ("OPTIONS", "/v1/hosts", {}, 405, "MethodNotAllowed", "OPTIONS is not possible"),
        ("GET", "/v1/nothing", {}, 404, "NotFound", "nothing here"),
        ("GET", "/v1/tasks/nobodys-task", {}, 404, "UnknownTask", "nobodys-task"),
        ("GET", "/v1/domains/nobody", {}, 404, "UnknownDomain", "nobody"),
        ("GET", f"/v1/points/{POINT}", {}, 404, "UnknownPoint", POINT),
        ("GET", "/v1/points/..%2F..%2Fx", {}, 404, "UnknownPoint", "../../x"),
        ("GET", "/v1/points", {}, 422, "InvalidRequest", "domain: Missing"),
        ("GET", "/v1/hosts?limit=1001", {}, 422, "InvalidRequest", "limit: "),
        ("GET", "/v1/hosts?limit=1&limit=2", {}, 422, "InvalidRequest", "limit: is there twice"),
        ("GET", "/v1/runs?since=yesterday", {}, 422, "InvalidRequest", "since: must be UTC"),
        ("GET", "/v1/hosts?token=x", {}, 422, "InvalidRequest", "token: "),
        ("GET", "/v1/tasks/x/wait?seconds=61", {}, 422, "InvalidRequest", "seconds: "),
    ],
)
def test_what_is_wrong_is_said(
    house: Served,
    method: str,
    path: str,
    given: dict[str, Any],
    status: int,
    error: str,
    words: str,
) -> None:
    with house.http("operator") as http:
        found = said(http.request(method, path, **given), status, error)
    assert words in found["message"]
    if "Missing" in words:
        assert found["fields"] == {words.partition(":")[0]: ["Missing data for required field."]}


def test_after_an_outage_the_same_submission_is_sent_again(house: Served) -> None:
    body = {"domain": house.guest.name}
    with house.http("operator") as http:
        house.stack.redis.stop()
        answer = http.post("/v1/backups", json=body)
        refused = said(answer, 503, "NotReachable")
        assert answer.headers["retry-after"]
        said(http.get("/v1/hosts"), 503, "NotReachable")
        house.stack.redis.start()
        key = {"Idempotency-Key": re.findall("Idempotency-Key: ([0-9a-f-]+);", refused["mend"])[0]}
        # The workers come back when they have noticed.
        until(
            lambda: http.post("/v1/backups", json=body, headers=key).status_code == 202,
            "central",
            40,
        )
        task = http.get(f"/v1/tasks/{key['Idempotency-Key']}/wait?seconds=40").json()
        assert (task["state"], task["error"]) == ("SUCCESS", None)
