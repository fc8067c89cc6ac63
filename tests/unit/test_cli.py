"""The command line against a fake client: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from virtvault import client, settings
from virtvault.cli import output
from virtvault.cli.main import cli
from virtvault.cli.options import speed
from virtvault.cli.progress import Lines
from virtvault.errors import (
    Cancelled,
    DomainBusy,
    JobFailed,
    NotReachable,
    UnknownDomain,
    VirtvaultError,
)
from virtvault.models import (
    BackupResult,
    BitmapChanges,
    BitmapInfo,
    CheckLine,
    DiskProgress,
    DomainInfo,
    HostInfo,
    JobInfo,
    Point,
    PointDisk,
    Progress,
    RepositoryInfo,
    RestoredDisk,
    RestoreResult,
)

TASK = "0f6b1a2c-0000-4000-8000-000000000001"
POINT = "20260131T040506Z-0123abcd"
UUID = "11111111-2222-4333-8444-555555555555"

VDA = PointDisk(
    target="vda",
    file="vda.qcow2",
    sync="full",
    parent="",
    reason="no earlier point",
    virtual_size=10 * 2**30,
    transferred=2**30,
    stored=2**29,
    length=2**29,
    source="/images/[web].qcow2",
    source_format="qcow2",
    bitmap="virtvault-x",
    persistent=True,
)
RESULT = BackupResult(
    task_id=TASK,
    point=POINT,
    domain="[web]",
    uuid=UUID,
    host="hv1",
    repository="local",
    state="complete",
    consistency="crash-consistent",
    instant="2026-01-31T04:05:06.123Z",
    paused_ms=12.34,
    frozen_ms=0.0,
    isolated=True,
    started="2026-01-31T04:05:05.000Z",
    finished="2026-01-31T04:05:35.500Z",
    job_seconds=29.0,
    disks=(VDA,),
    skipped={"sda": "a cdrom"},
    notes=("the guest agent does not answer",),
)
RESTORED = RestoreResult(
    task_id=TASK,
    point=POINT,
    domain="web",
    host="hv1",
    repository="local",
    mode="flatten",
    to="/restores/web",
    state="complete",
    started="2026-01-31T04:05:05.000Z",
    finished="2026-01-31T04:05:06.000Z",
    disks=(RestoredDisk("vda", "/restores/web/vda.raw", "raw", 2**30, 2**20),),
)
A_POINT = Point(
    id=POINT,
    repository="local",
    repository_id="0123abcd",
    task_id=TASK,
    domain="web",
    uuid=UUID,
    host="hv1",
    instant="2026-01-31T04:05:06.123Z",
    started="2026-01-31T04:05:05.000Z",
    finished="2026-01-31T04:05:35.500Z",
    consistency="agent-frozen",
    paused_ms=0.0,
    frozen_ms=80.0,
    isolated=True,
    disks=(VDA,),
    versions={"qemu": "7.2.0"},
)


def copying(done: int, *, phase: str = "copying") -> Progress:
    """A sample ``done`` percent through one disk of 100 MiB."""
    total = 100 * 2**20
    disk = DiskProgress("vda", done * 2**20, total, "running")
    return Progress(TASK, phase, disk.done, total, rate=2**20, eta=100.0 - done, disks=(disk,))


class FakeHandle:
    """A task that reports its samples, then returns or raises its outcome."""

    task_id = TASK
    host = "hv1"

    def __init__(self, outcome: Any, samples: tuple[Progress, ...] = ()) -> None:
        self.outcome = outcome
        self.samples = samples

    def wait(
        self,
        timeout: float | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Any:
        for sample in self.samples:
            if on_progress is not None:
                on_progress(sample)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class FakeClient:
    """Answers each question with what the test put in ``answers``; keeps what it was asked."""

    answers: dict[str, Any]
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]]

    def __init__(self, given: settings.Settings | None = None) -> None:
        assert given is not None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*arguments: Any, **named: Any) -> Any:
            self.asked.append((name, arguments, named))
            value = self.answers[name]
            if isinstance(value, BaseException):
                raise value
            return value

        return answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeClient]:
    """The fake in the client's place, with a settings file of its own."""
    for name in [name for name in os.environ if name.startswith("VIRTVAULT_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "virtvault.toml"
    config.write_text('host = "hv1"\n')
    monkeypatch.setenv("VIRTVAULT_CONFIG", str(config))
    made = type("Fake", (FakeClient,), {"answers": {}, "asked": []})
    monkeypatch.setattr(client, "Client", made)
    return made


def run(*arguments: str) -> Result:
    """Call ``virtvault`` with these arguments."""
    return CliRunner().invoke(cli, arguments)


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    return json.loads(result.stdout)


# -- backup, restore, task ------------------------------------------------------------------------


def test_backup_prints_the_result_on_stdout_and_progress_on_stderr(fake: type[FakeClient]) -> None:
    fake.answers["backup"] = FakeHandle(RESULT, (copying(0), copying(100)))
    result = run("backup", "web", "--disk", "vda", "--disk", "vdb", "--speed", "50M")
    assert result.exit_code == 0
    assert fake.asked == [
        (
            "backup",
            ("web",),
            {
                "repository": "",
                "sync": "auto",
                "disks": ("vda", "vdb"),
                "speed": 50 * 2**20,
                "freeze": "auto",
                "bitmap": "",
                "start_paused": False,
            },
        )
    ]
    assert f"point {POINT} of [web] on hv1, repository local" in result.stdout
    assert "crash-consistent, guest paused 12.3 ms, took 30.5 s" in result.stdout
    assert "skipped sda: a cdrom" in result.stdout
    assert "note: the guest agent does not answer" in result.stdout
    vda = next(line for line in result.stdout.splitlines() if line.startswith("vda"))
    assert [cell.strip() for cell in vda.split("  ") if cell] == [
        *("vda", "full", "10.0 GiB", "1.0 GiB", "512.0 MiB", "no earlier point")
    ]
    assert "copying: 0.0 %" in result.stderr
    assert "copying" not in result.stdout


def test_backup_json_is_one_document(fake: type[FakeClient]) -> None:
    fake.answers["backup"] = FakeHandle(RESULT, (copying(50),))
    result = run("backup", "web", "--json")
    said = document(result)
    assert (said["point"], said["task_id"], said["state"]) == (POINT, TASK, "complete")
    assert said["disks"][0]["reason"] == "no earlier point"
    assert "copying: 50.0 %" in result.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_detach_does_not_wait(fake: type[FakeClient], as_json: bool) -> None:
    fake.answers["backup"] = FakeHandle(AssertionError("waited"))
    result = run("backup", "web", "--detach", *(["--json"] if as_json else []))
    assert result.exit_code == 0
    if as_json:
        assert document(result) == {"task_id": TASK, "host": "hv1", "state": "detached"}
    else:
        assert f"virtvault task {TASK}" in result.stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_detaches_and_says_how_to_look_again(fake: type[FakeClient], as_json: bool) -> None:
    fake.answers["backup"] = FakeHandle(KeyboardInterrupt(), (copying(1),))
    result = run("backup", "web", *(["--json"] if as_json else []))
    assert result.exit_code == 0
    assert "detached; the backup of web goes on" in result.stderr
    if as_json:
        assert document(result)["state"] == "detached"
    else:
        assert f"virtvault task {TASK}" in result.stdout


def test_restore_makes_a_relative_directory_absolute(fake: type[FakeClient]) -> None:
    fake.answers["restore"] = FakeHandle(RESTORED)
    result = run("restore", POINT, "--to", "out", "--format", "raw", "--host", "hv2")
    assert result.exit_code == 0
    (_, arguments, named), *_ = fake.asked
    assert arguments == (POINT,)
    assert named["to"] == str(Path.cwd() / "out")
    assert (named["host"], named["format"], named["mode"]) == ("hv2", "raw", "flatten")
    assert "/restores/web/vda.raw" in result.stdout


def test_restore_into_no_directory_is_wrong_usage(fake: type[FakeClient]) -> None:
    assert run("restore", POINT, "--to", "").exit_code == 2
    assert fake.asked == []


def test_task_follows_again(fake: type[FakeClient]) -> None:
    fake.answers["handle"] = FakeHandle(RESTORED, (copying(10, phase="restoring"),))
    result = run("task", TASK, "--json")
    assert document(result)["to"] == "/restores/web"
    assert "restoring: 10.0 %" in result.stderr


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailed("The job of vda failed: No space left.", "Make room."), 1),
        (UnknownDomain("No hypervisor has a domain 'web'.", "See `virtvault domains`."), 2),
        (DomainBusy("Domain web is being backed up.", "Wait."), 2),
        (NotReachable("Redis does not answer.", "Start it."), 3),
        (Cancelled("The task was cancelled.", ""), 4),
    ],
)
def test_errors_are_sentences_with_an_exit_code(
    fake: type[FakeClient], error: VirtvaultError, code: int
) -> None:
    fake.answers["backup"] = FakeHandle(error)
    plain = run("backup", "web")
    assert plain.exit_code == code
    assert f"error: {error.message}\n" in plain.stderr
    assert not error.mend or f"\n  {error.mend}\n" in plain.stderr
    assert plain.stdout == ""

    as_json = run("backup", "web", "--json")
    assert as_json.exit_code == code
    assert document(as_json) == {
        "error": {
            "type": type(error).__name__,
            "message": error.message,
            "mend": error.mend,
            "exit_code": code,
        }
    }


def test_an_internal_error_is_one_line_without_a_traceback(fake: type[FakeClient]) -> None:
    fake.answers["hosts"] = ZeroDivisionError("oh\nno")
    result = run("hosts", "--json")
    assert result.exit_code == 1
    assert "error: internal: ZeroDivisionError: oh no; this is a bug\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert document(result)["error"]["type"] == "ZeroDivisionError"
    assert isinstance(run("--debug", "hosts").exception, ZeroDivisionError)


def test_wrong_settings_are_named(fake: type[FakeClient], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("slotz = 1\n")
    result = run("--config", str(wrong), "hosts")
    assert result.exit_code == 2
    assert f"error: {wrong}: slotz: unknown field" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("backup",),
        ("backup", "web", "--speed", "fast"),
        ("backup", "web", "--sync", "some"),
        ("speed", TASK),
        ("speed", TASK, "fast"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_2_and_a_document_with_json(
    fake: type[FakeClient], arguments: tuple[str, ...]
) -> None:
    plain = run(*arguments)
    assert plain.exit_code == 2
    assert "\nerror: " in plain.stderr
    assert plain.stdout == ""
    assert document(run(*arguments, "--json"))["error"]["exit_code"] == 2
    assert fake.asked == []


def test_a_group_without_its_command_shows_its_help_and_no_error(fake: type[FakeClient]) -> None:
    done = run("policy")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert "error:" not in done.stderr


# -- listings -------------------------------------------------------------------------------------


def test_hosts(fake: type[FakeClient]) -> None:
    room = RepositoryInfo("local", "0123abcd", free=3 * 2**30, size=2**40)
    bad = RepositoryInfo("nfs", why="/mnt/nfs does not answer.")
    seen = "2026-01-31T04:05:06.123Z"
    fake.answers["hosts"] = [
        HostInfo("hv1", True, seen, "9.0.0", "7.2.0", 3, ("local", "nfs"), (room, bad)),
        HostInfo("hv2", False, "2026-01-30T04:05:06.123Z", "9.0.0", "7.2.0", 1, (), ()),
        HostInfo("hv3", True, seen, trouble="libvirt does not answer."),
    ]
    result = run("hosts")
    table = result.stdout.splitlines()
    assert " ".join(table[1].split()) == (
        "hv1 alive 2026-01-31 04:05:06 UTC 9.0.0 7.2.0 3 local (3.0 GiB free), nfs (unusable)"
    )
    assert table[2].split()[:2] == ["hv2", "gone"]
    assert result.stderr.splitlines() == [
        "note: hv1: repository nfs: /mnt/nfs does not answer.",
        "note: hv2: gone since 2026-01-30 04:05:06 UTC; what is shown is what it said last.",
        "note: hv3: libvirt does not answer. Its domains are as they were known last.",
    ]
    listed = document(run("hosts", "--json"))
    assert [host["alive"] for host in listed] == [True, False, True]
    assert listed[0]["storage"][0]["free"] == 3 * 2**30


def test_domains_by_label_and_what_cannot_be_told_of_them(fake: type[FakeClient]) -> None:
    fake.answers["domains"] = [
        DomainInfo("db1", UUID, "hv1", "running", 1, labels={"tier": "prod", "team": "a"}),
        DomainInfo("db2", UUID, "hv2", "unreachable", 1, labels={"tier": "prod-eu"}),
        DomainInfo("web", UUID, "hv1", "running", 1),
    ]
    fake.answers["hosts"] = [
        HostInfo("hv1", True, "2026-01-31T04:05:06.123Z"),
        HostInfo("hv2", False, "2026-01-30T04:05:06.123Z"),
    ]
    result = run("domains", "--label", "tier=prod*")
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [
        ["db1", "hv1", "running"],
        ["db2", "hv2", "unreachable"],
    ]
    assert "team=a, tier=prod" in result.stdout
    assert result.stderr.splitlines() == [
        "note: hv2: gone since 2026-01-30 04:05:06 UTC. Its domains are those that were known last."
    ]
    both = document(run("domains", "--label", "tier=prod*", "--label", "team=a", "--json"))
    assert [(d["name"], d["labels"]) for d in both] == [("db1", {"tier": "prod", "team": "a"})]
    assert run("domains", "--label", "tier").exit_code == 2


def test_labels_are_set_and_removed(fake: type[FakeClient]) -> None:
    fake.answers["label"] = DomainInfo("db1", UUID, "hv1", "running", labels={"tier": "a=b"})
    result = run("label", "db1", "tier=a=b", "team-")
    assert result.stdout == "hv1/db1: tier=a=b\n"
    assert fake.asked == [("label", ("db1", {"tier": "a=b", "team": ""}), {})]
    for wrong in (("tier",), ("=x",), ("-",), ("tier=",), ("a=1", "a-"), ()):
        assert run("label", "db1", *wrong).exit_code == 2
    assert len(fake.asked) == 1


def test_a_listing_is_one_line_each_and_prints_names_as_they_are(fake: type[FakeClient]) -> None:
    names = ["[bold]web", "x" * 200, "größe"]
    fake.answers["domains"] = [DomainInfo(name, UUID, "hv1", "running", 1) for name in names]
    lines = run("domains", "--host", "hv1").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == names
    assert fake.asked == [("domains", ("hv1",), {})]


def test_nothing_that_a_terminal_would_obey_is_printed(fake: type[FakeClient]) -> None:
    name = "db\x1b]0;owned\x07\x9b2J\u202e"
    found = DomainInfo(name, UUID, "hv1", "running", 1, labels={"tier": name})
    error = UnknownDomain(f"Domain {name} is unknown.\nSecond line.", name)
    fake.answers.update(domains=[found], label=found, hosts=error)
    said = [run("domains", "--host", "hv1"), run("label", name, "tier=x"), run("hosts")]
    for one in said:
        assert "owned" in one.output
        assert all(c.isprintable() or c == "\n" for c in one.output)
    assert "\nSecond line." in said[2].output


@pytest.mark.parametrize("command", ["hosts", "domains", "points", "jobs"])
def test_an_empty_listing(fake: type[FakeClient], command: str) -> None:
    fake.answers.update({"statuses": [], "hosts": [], command: []})
    assert run(command).stdout.startswith("No ")
    assert document(run(command, "--json")) == []


def test_points_and_show(fake: type[FakeClient]) -> None:
    fake.answers.update(points=[A_POINT], show=A_POINT, statuses=[], status=None)
    table = run("points", "web").stdout
    assert all(text in table for text in (POINT, "vda:F", "512.0 MiB", "agent-frozen"))
    shown = run("show", POINT).stdout
    assert "agent-frozen, guest paused 0.0 ms, file systems frozen 80.0 ms" in shown
    assert "/images/[web].qcow2" in shown
    assert document(run("show", POINT, "--json"))["id"] == POINT


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warning", 0), ("failed", 1)])
def test_check_fails_when_a_line_does(fake: type[FakeClient], verdict: str, code: int) -> None:
    fake.answers["check"] = [CheckLine("libvirt", verdict, "9.0.0", "Start it.")]
    result = run("check")
    assert result.exit_code == code
    assert ("Start it." in result.stdout) == (verdict != "ok")
    assert run("check", "--json").exit_code == code


@pytest.mark.parametrize("action", ["cancel", "pause", "resume"])
def test_control_says_what_was_done(fake: type[FakeClient], action: str) -> None:
    fake.answers[action] = "Two jobs were told."
    assert run(action, TASK).stdout == "Two jobs were told.\n"
    said = document(run(action, TASK, "--json"))
    assert said == {"name": TASK, "action": action, "detail": "Two jobs were told."}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (
            ("cancel", "commit-vda", "--host", "hv1", "--domain", "web", "--yes"),
            ("cancel", ("commit-vda",), {"host": "hv1", "domain": "web", "others": True}),
        ),
        (("cancel", TASK), ("cancel", (TASK,), {"host": "", "domain": "", "others": False})),
        (
            ("pause", "commit-vda", "--domain", "hv1/web"),
            ("pause", ("commit-vda",), {"host": "", "domain": "hv1/web"}),
        ),
        (("speed", TASK, "1.5M"), ("set_speed", (TASK, 1572864), {"host": "", "domain": ""})),
        (("speed", TASK, "0"), ("set_speed", (TASK, 0), {"host": "", "domain": ""})),
    ],
)
def test_what_control_is_asked_for(
    fake: type[FakeClient], arguments: tuple[str, ...], asked: tuple[Any, ...]
) -> None:
    fake.answers[asked[0]] = "Done."
    assert run(*arguments).stdout == "Done.\n"
    assert fake.asked == [asked]


def test_jobs_shows_whose_each_is_and_why_it_failed(fake: type[FakeClient]) -> None:
    ours = f"virtvault-{POINT[-8:]}-vda"
    fake.answers["jobs"] = [
        JobInfo("hv1", "web", ours, "backup", "running", 2**20, 2**21, 2**20, TASK, UUID),
        JobInfo("hv1", "web", "made", "create", "concluded", 1, 1, 0, uuid=UUID, error="No room"),
    ]
    table = run("jobs", "--host", "hv1", "--domain", "web").stdout.splitlines()
    assert fake.asked == [("jobs", ("hv1", "web"), {})]
    assert table[0].split()[-3:] == ["LIMIT", "OWNER", "ERROR"]
    assert table[1].split() == [
        *("hv1", "web", ours, "backup", "running", "1.0", "MiB", "2.0", "MiB", "1.0", "MiB/s"),
        *(TASK, "-"),
    ]
    assert table[2].split()[-3:] == ["others", "No", "room"]
    assert [job["error"] for job in document(run("jobs", "--json"))] == ["", "No room"]


# -- bitmaps --------------------------------------------------------------------------------------

MINE = BitmapInfo("vda", "mine", "user", "", 65536, 2**20, True, "recording", "/i/a.qcow2", True)
OURS = replace(MINE, name="virtvault.x", owner="virtvault", purpose=f"point {POINT}", dirty=None)
BELOW = replace(MINE, target="vdb", persistent=False, image="/i/[base].qcow2", active=False)


def test_bitmaps_are_listed_with_their_owner_and_image(fake: type[FakeClient]) -> None:
    fake.answers["bitmaps"] = [MINE, OURS, BELOW]
    table = run("bitmaps", "list", "web", "--disk", "vda").stdout.splitlines()
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in table[1:]]
    assert cells == [
        ["vda", "mine", "user", "64.0 KiB", "1.0 MiB", "yes", "recording", "active"],
        [
            *("vda", "virtvault.x", f"virtvault: point {POINT}"),
            *("64.0 KiB", "unknown", "yes", "recording", "active"),
        ],
        ["vdb", "mine", "user", "64.0 KiB", "1.0 MiB", "no", "recording", "/i/[base].qcow2"],
    ]
    assert fake.asked == [("bitmaps", ("web",), {"disks": ("vda",)})]
    assert document(run("bitmaps", "list", "web", "--json"))[1]["dirty"] is None


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("add",), ("add_bitmap", {"disks": (), "granularity": 0, "persistent": None})),
        (
            ("add", "--granularity", "64K", "--no-persistent", "--disk", "vda"),
            ("add_bitmap", {"disks": ("vda",), "granularity": 65536, "persistent": False}),
        ),
        (("clear",), ("clear_bitmap", {"disks": ()})),
        (("remove",), ("remove_bitmap", {"disks": (), "include_ours": False})),
        (("remove", "--yes"), ("remove_bitmap", {"disks": (), "include_ours": True})),
    ],
)
def test_bitmaps_asks_for_what_was_given(
    fake: type[FakeClient], arguments: tuple[str, ...], asked: tuple[str, dict[str, Any]]
) -> None:
    verb, *options = arguments
    name, named = asked
    fake.answers[name] = BitmapChanges("web", "added", (MINE,))
    assert run("bitmaps", verb, "web", "mine", *options).exit_code == 0
    assert fake.asked == [(name, ("web", "mine"), named)]


def test_bitmaps_says_what_was_done_on_each_disk(fake: type[FakeClient]) -> None:
    skipped = {"vdc": "a raw image"}
    fake.answers["add_bitmap"] = BitmapChanges("web", "added", (MINE, BELOW), skipped)
    assert run("bitmaps", "add", "web", "mine").stdout.splitlines() == [
        "vda: added mine, 64.0 KiB granularity, persistent (stored in the image at shutdown)",
        "vdb: added mine, 64.0 KiB granularity, not persistent (in QEMU's memory, gone when the "
        "domain is shut off)",
        "skipped vdc: a raw image",
    ]
    fake.answers["remove_bitmap"] = BitmapChanges("web", "removed", (MINE, OURS))
    assert run("bitmaps", "remove", "web", "*", "--yes").stdout.splitlines() == [
        "vda: removed mine",
        f"vda: removed virtvault.x (point {POINT}): the next backup there is a full",
    ]
    assert document(run("bitmaps", "remove", "web", "*", "--json"))["action"] == "removed"


@pytest.mark.parametrize("wrong", ["fast", "0", "64 K", "-1", "1.5K", "64T"])
def test_a_granularity_that_is_no_size_is_wrong_usage(fake: type[FakeClient], wrong: str) -> None:
    result = run("bitmaps", "add", "web", "mine", f"--granularity={wrong}")
    assert result.exit_code == 2
    assert "--granularity" in result.stderr
    assert fake.asked == []


# -- roles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "becomes"),
    [
        (("worker",), ["tasks.role", "worker"]),
        (("flower",), ["tasks.role", "flower"]),
        (("up",), ["tasks.embedded", "up"]),
        (
            ("up", "--state-dir", "-x", "--flower-port", "5556", "--detach"),
            ["tasks.embedded", "up", "--state-dir=-x", "--flower-port=5556", "--detach"],
        ),
        (("down", "--state-dir", "/s"), ["tasks.embedded", "down", "--state-dir=/s"]),
    ],
)
def test_a_role_replaces_the_process(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], becomes: list[str]
) -> None:
    calls: list[tuple[str, list[str], str | None]] = []

    def execve(path: str, words: list[str], environ: dict[str, str]) -> None:
        calls.append((path, words, environ.get("VIRTVAULT_CONFIG")))

    monkeypatch.setattr(os, "execve", execve)
    run("--config", "/etc/other.toml", *arguments)
    words = [sys.executable, "-P", "-m", *becomes]
    assert calls == [(sys.executable, words, "/etc/other.toml")]


# -- numbers and lines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("0", 0),
        ("1000", 1000),
        ("512K", 512 * 2**10),
        ("50M", 50 * 2**20),
        ("50m", 50 * 2**20),
        ("50MiB/s", 50 * 2**20),
        ("1G", 2**30),
        ("1.5G", 3 * 2**29),
    ],
)
def test_speed(text: str, bytes_per_second: int) -> None:
    assert speed(text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "M", "-1M", "5x", "1 2", "1e3", "0.1", "9" * 400, "٣M"])
def test_what_is_no_speed(text: str) -> None:
    with pytest.raises(click.BadParameter):
        speed(text)


def test_plain_lines_come_at_a_phase_change_and_every_two_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    lines = Lines(clock=lambda: now[0])
    lines(Progress(TASK, "preparing"))
    for tick in range(50):
        now[0] = tick / 10
        lines(copying(tick))
    lines(Progress(TASK, "committing"))
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.partition(",")[0] for line in said.err.splitlines()] == [
        *("preparing", "copying: 0.0 %", "copying: 20.0 %", "copying: 40.0 %", "committing")
    ]
    assert "20.0 MiB of 100.0 MiB, 1.0 MiB/s, 1:20 left" in said.err


def test_numbers_for_people() -> None:
    assert [output.size(n) for n in (0, 1023, 1024, 2**30, 5 * 2**50)] == [
        *("0 B", "1023 B", "1.0 KiB", "1.0 GiB", "5.0 PiB")
    ]
    assert [output.duration(s) for s in (0.04, 59.9, 60, 3723)] == [
        *("0.0 s", "59.9 s", "1:00", "1:02:03")
    ]
    assert output.instant("2026-01-31T05:05:06+01:00") == "2026-01-31 04:05:06 UTC"
