"""Every example of docs/examples, run as a user runs it: real central, worker, Flower and guest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.served import PASSWORD, Served, served
from tests.integration.test_flower import free_port, until
from virtvault import queues

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PORT = free_port()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    secret = tmp_path_factory.mktemp("secret") / "webhook"
    secret.write_text("a secret of the test's\n")
    secret.chmod(0o600)
    with served(
        callback_urls=[f"http://127.0.0.1:{PORT}/"], **{"notify.webhook_secret_file": str(secret)}
    ) as made:
        yield made


def environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTVAULT_", "FLOWER_"))}
    return {**kept, **variables}


def example(house: Served, name: str, *arguments: str, **variables: str) -> str:
    """What an example prints; it must end well."""
    program = ["sh"] if name.endswith(".sh") else [sys.executable]
    done = subprocess.run(
        [*program, str(EXAMPLES / name), *arguments],
        env=environment(**variables),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def points(house: Served) -> set[str]:
    return {point.id for point in house.stack.client().points(house.guest.name)}


@contextmanager
def backed_up(house: Served) -> Iterator[list[str]]:
    """A point more is there at the end, and it is the one that was told of."""
    before = points(house)
    said: list[str] = []
    yield said
    (made,) = points(house) - before
    assert made in said[0]


def test_the_python_client(house: Served) -> None:
    config = str(house.stack.config)
    with backed_up(house) as said:
        said.append(example(house, "python_client.py", house.guest.name, VIRTVAULT_CONFIG=config))


def test_celery_alone_where_nothing_of_ours_is_installed(house: Served) -> None:
    # -S: without site-packages' .pth files, through which virtvault is found here.
    bare = [sys.executable, "-S", str(EXAMPLES / "send_task.py")]
    variables = environment(
        BROKER_URL=house.stack.redis.url,
        PYTHONPATH=sysconfig.get_path("purelib"),
    )
    missing = subprocess.run(
        [sys.executable, "-S", "-c", "import virtvault"],
        env=variables,
        cwd="/",
        capture_output=True,
    )
    assert b"No module named 'virtvault'" in missing.stderr

    def run(domain: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*bare, domain], env=variables, cwd="/", capture_output=True, text=True, timeout=60
        )

    with backed_up(house) as said:
        done = run(house.guest.name)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    wrong = run("nobody")
    assert wrong.returncode == 1
    assert "No hypervisor has a domain 'nobody'." in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_rest_by_curl(house: Served) -> None:
    tokens = {"VIRTVAULT_URL": house.url, "VIRTVAULT_TOKEN": house.tokens["operator"]}
    with backed_up(house) as said:
        said.append(example(house, "rest.sh", house.guest.name, **tokens))


def test_flowers_own_api_enqueues_a_backup(house: Served) -> None:
    with backed_up(house) as said:
        said.append(
            example(
                house,
                "flower_api.sh",
                house.guest.name,
                FLOWER_URL=house.url,
                FLOWER_BASIC_AUTH=PASSWORD,
            )
        )
    # What is refused never begins: it must not be waited for.
    wrong = subprocess.run(
        ["sh", str(EXAMPLES / "flower_api.sh"), "nobody"],
        env=environment(FLOWER_URL=house.url, FLOWER_BASIC_AUTH=PASSWORD),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert wrong.returncode == 1
    assert "No hypervisor has a domain 'nobody'." in wrong.stderr


def test_the_stream_of_ends(house: Served) -> None:
    house.stack.client().backup(house.guest.name).wait(60)
    said = example(
        house,
        "follow_events.py",
        "1",
        VIRTVAULT_URL=house.url,
        VIRTVAULT_TOKEN=house.tokens["viewer"],
    )
    assert re.search(rf"Z backup {house.guest.name} complete", said)


def test_a_callback_is_received_and_found_genuine(house: Served, tmp_path: Path) -> None:
    client = house.stack.client()
    said = tmp_path / "said"
    with said.open("w") as out, ExitStack() as stack:
        receiver = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "receive_callbacks.py"), str(PORT)],
            env=environment(WEBHOOK_SECRET_FILE=client.settings.notify.webhook_secret_file),
            stdout=out,
        )
        stack.callback(receiver.wait)
        stack.callback(receiver.terminate)
        until(lambda: f"listening on {PORT}\n" in said.read_text(), "the receiver")
        with house.http("operator") as http:
            body = {"domain": house.guest.name, "callback": f"http://127.0.0.1:{PORT}/x?y=1"}
            answer = http.post("/v1/backups", json=body)
            assert answer.status_code == 202, answer.text
            http.get(answer.headers["location"] + "/wait?seconds=60")
        until(lambda: client.run(answer.json()["task_id"]), "the run in the catalog")
        # Beat does this every 15 seconds.
        client.app.send_task(queues.WATCH, queue=queues.CENTRAL)
        point = client.points(house.guest.name)[-1].id
        told = f"backup {house.guest.name} complete {point} \n"
        until(lambda: told in said.read_text(), "the callback")


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.iterdir() if f'"{path.name}"' not in text] == []
