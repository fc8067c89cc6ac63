"""Which policies mean a domain, which of them hold, and why the others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from beat.matching import PolicyMatcher, match
from virtvault.models import DomainInfo, Policy, PolicyDocument, Schedule, Selector

UUID = "11111111-2222-3333-4444-555555555555"
WEB = DomainInfo("web-01", UUID, "hv-a", "running", labels={"tier": "gold", "app.x": "shop"})
DAILY = Schedule(cron="0 2 * * *")


def policy(name: str, **kwargs: Any) -> Policy:
    return Policy(name, kwargs.pop("select", Selector(names=("*",))), DAILY, **kwargs)


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        (Selector(), False),
        (Selector(names=("web-01",)), True),
        (Selector(names=("web-*",)), True),
        (Selector(names=("WEB-*",)), False),
        (Selector(names=("web-0",)), False),
        (Selector(names=("db-*", "web-0[0-9]")), True),
        (Selector(names=("web-0[!1]",)), False),
        (Selector(names=("*eb-0?", "db")), True),
        (Selector(hosts=("hv-a",)), True),
        (Selector(hosts=("hv-b", "HV-*")), False),
        (Selector(uuids=(UUID,)), True),
        (Selector(uuids=("0" * 36,)), False),
        (Selector(labels={"tier": "gold"}), True),
        (Selector(labels={"tier": "g*", "app.x": "shop"}), True),
        (Selector(labels={"tier": "g*", "app.x": "till"}), False),
        (Selector(labels={"owner": "*"}), False),
        # Every kind that is given must fit.
        (Selector(names=("web-*",), hosts=("hv-b",)), False),
        (Selector(names=("db-*",), uuids=(UUID,)), False),
        (Selector(hosts=("hv-?",), names=("*",), labels={"tier": "*"}), True),
    ],
)
def test_a_selector_means_what_fits_each_kind_of_its_conditions(
    selector: Selector, fits: bool
) -> None:
    chosen = match(PolicyDocument((policy("p", select=selector),)), WEB, "main")
    assert [p.name for p in chosen.policies] == (["p"] if fits else [])
    # The same selector as an exclusion takes out just what it would have chosen.
    left = match(PolicyDocument((policy("p", exclude=selector),)), WEB, "main")
    assert bool(left.policies) == (not fits)


def test_a_name_with_a_pattern_s_characters_in_it_is_matched_as_text_elsewhere() -> None:
    odd = replace(WEB, name="a.b+c")
    assert match(
        PolicyDocument((policy("p", select=Selector(names=("a.b+c",))),)), odd, ""
    ).policies
    other = replace(WEB, name="aXb+c")
    found = match(PolicyDocument((policy("p", select=Selector(names=("a.b*",))),)), other, "")
    assert not found.policies


def test_of_policies_for_one_repository_the_highest_priority_holds_then_the_first() -> None:
    document = PolicyDocument(
        (
            policy("all"),
            policy("gold", priority=10),
            policy("gold-too", priority=10, repository="main"),
            policy("offsite", repository="far"),
            policy("off", priority=99, enabled=False),
        )
    )
    found = match(document, WEB, "main")
    assert [p.name for p in found.policies] == ["gold", "offsite"]
    assert found.repositories == {"gold": "main", "offsite": "far"}
    assert found.shadowed == {
        "all": "policy gold holds for repository main: its priority 10 is above 0",
        "gold-too": (
            "policy gold holds for repository main: of priority 10 too, and it comes first"
        ),
    }


def test_where_no_default_is_known_an_unnamed_repository_is_one_of_its_own() -> None:
    document = PolicyDocument((policy("a"), policy("b", repository="main"), policy("c")))
    found = match(document, WEB, "")
    assert found.repositories == {"a": "", "b": "main"}
    assert found.shadowed["c"].startswith("policy a holds for its host's default repository")


def test_a_document_that_was_read_once_matches_each_domain_by_itself() -> None:
    matcher = PolicyMatcher(
        PolicyDocument(
            (
                policy("a", select=Selector(hosts=("hv-a",))),
                policy("b", exclude=Selector(names=("web*",))),
            )
        )
    )
    assert [p.name for p in matcher.match(WEB, "main").policies] == ["a"]
    db = replace(WEB, name="db", host="hv-b")
    assert [p.name for p in matcher.match(db, "other").policies] == ["b"]
    assert matcher.match(db, "other").repositories == {"b": "other"}
