"""`virtvault restore`: what each way of asking sends, and what is refused before it is sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_cli import POINT, RESTORED, FakeClient, FakeHandle, fake, run

__all__ = ["fake"]  # a fixture

DEFINED = replace(
    RESTORED,
    mode="instant",
    name="web2",
    domain_uuid="33333333-3333-3333-3333-333333333333",
    booted=RESTORED.finished,
    notes=("its TPM begins empty",),
)


def test_a_new_domain_needs_no_directory_and_is_told_of(fake: type[FakeClient]) -> None:
    fake.answers["restore"] = FakeHandle(DEFINED)
    result = run("restore", POINT, "--as", "web2", "--mode", "instant", "--force")
    assert result.exit_code == 0, result.stderr
    (_, _, named), *_ = fake.asked
    assert (named["to"], named["name"], named["mode"], named["force"]) == (
        "",
        "web2",
        "instant",
        True,
    )
    for expected in ("domain web2 (3333", "its guest ran after", "note: its TPM begins empty"):
        assert expected in result.stdout


def test_devices_are_named_by_disk(fake: type[FakeClient]) -> None:
    fake.answers["restore"] = FakeHandle(RESTORED)
    run("restore", POINT, "--device", "vda=/dev/vg0/a", "--device", "vdb=/dev/vg0/b=c")
    (_, _, named), *_ = fake.asked
    assert named["devices"] == {"vda": "/dev/vg0/a", "vdb": "/dev/vg0/b=c"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--in-place",), "repeat with --yes"),
        (("--device", "vda"), "TARGET=PATH"),
        (("--device", "vda=/dev/a", "--device", "vda=/dev/b"), "vda is given twice"),
    ],
)
def test_what_is_not_clear_is_not_sent(
    fake: type[FakeClient], arguments: tuple[str, ...], said: str
) -> None:
    result = run("restore", POINT, *arguments)
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert fake.asked == []


def test_in_place_is_sent_with_a_yes(fake: type[FakeClient]) -> None:
    fake.answers["restore"] = FakeHandle(RESTORED)
    assert run("restore", POINT, "--in-place", "--yes").exit_code == 0
    (_, _, named), *_ = fake.asked
    assert named["in_place"] is True
