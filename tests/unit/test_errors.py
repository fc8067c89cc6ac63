"""The error tree: what callers and the command line rely on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from virtvault import errors
from virtvault.errors import VirtvaultError

# What the table in the module's docstring promises: exit code and retryable.
PROMISED = {
    "VirtvaultError": (1, False),
    "BadInput": (2, False),
    "InvalidRequest": (2, False),
    "InvalidSettings": (2, False),
    "UnknownDomain": (2, False),
    "UnknownDisk": (2, False),
    "UnknownRepository": (2, False),
    "UnknownPoint": (2, False),
    "UnknownTask": (2, False),
    "NothingToBackUp": (2, False),
    "UnknownBitmap": (2, False),
    "ProtectedBitmap": (2, False),
    "DestinationExists": (2, False),
    "NoRoom": (2, False),
    "PointBad": (2, False),
    "PointBusy": (2, True),
    "DomainBusy": (2, True),
    "WorkFailed": (1, True),
    "GuestAgentFailed": (1, True),
    "JobFailed": (1, True),
    "DomainStopped": (1, True),
    "DomainStarted": (1, True),
    "JobVanished": (1, True),
    "RepositoryUnusable": (1, True),
    "NotSupported": (1, False),
    "MonitorError": (1, True),
    "NotReachable": (3, True),
    "Cancelled": (4, False),
}


def tree(root: type[VirtvaultError]) -> Iterator[type[VirtvaultError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


def test_every_error_has_the_exit_code_and_retryable_of_the_table() -> None:
    found = {e.__name__: (e.exit_code, e.retryable) for e in tree(VirtvaultError)}
    assert found == PROMISED
    assert sorted(errors.__all__) == sorted(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_every_error_is_in_the_drawn_tree_and_says_what_it_means(name: str) -> None:
    assert errors.__doc__ is not None
    assert name in errors.__doc__
    assert getattr(errors, name).__doc__


@pytest.mark.parametrize("name", PROMISED)
def test_an_error_is_the_same_after_its_way_through_celery(name: str) -> None:
    made = getattr(errors, name)("Disk vda is full.", "Make room.")
    wire = json.dumps([type(made).__name__, type(made).__module__, made.args])
    type_, module, arguments = json.loads(wire)
    assert module == errors.__name__
    again = getattr(errors, type_)(*arguments)
    assert (again.args, again.message, again.mend) == (
        ("Disk vda is full.", "Make room."),
        "Disk vda is full.",
        "Make room.",
    )
    assert str(again) == "Disk vda is full. Make room."


def test_an_error_without_a_mend_shows_its_message_alone() -> None:
    assert str(VirtvaultError("It failed.")) == "It failed."
    assert VirtvaultError("It failed.").args == ("It failed.", "")
