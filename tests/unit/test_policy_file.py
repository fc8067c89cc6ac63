"""A policy file: what is read of it, and what is said of each thing that is wrong, by line."""

from __future__ import annotations

import json
import random
import textwrap
from pathlib import Path

import pytest

from virtvault import schemas
from virtvault.errors import InvalidRequest
from virtvault.models import (
    FullEvery,
    Limits,
    Policy,
    PolicyDocument,
    RetentionRules,
    Schedule,
    Selector,
)
from virtvault.policy_file import LARGEST, read, without

GOOD = """\
limits: {per_host: 2, total: 40}
policies:
  - name: gold
    select: &gold
      names: [web-*, "db-?"]
      labels: {tier: gold, zip: 0644, on: no, at: 22:30, since: 2026-01-01, half: 0.5, no: "null"}
    exclude: {hosts: [old-*]}
    disks: [vda]
    schedule: &night {cron: "0 2 * * 1-5", timezone: Europe/Vienna, window: 4h, spread: 90m}
    full_every: {points: 30, days: 7}
    retention: {daily: 7, within: 2d}
    rpo: 1d2h
    speed: 50M
    priority: -3
    verify: {<<: *night, spread: 0}
    late: skip
  - {name: rest, select: *gold, schedule: {every: 21600}, prune: null}
"""


def problems(text: str) -> list[str]:
    """What is said of a text, without the file's name."""
    with pytest.raises(InvalidRequest) as refused:
        read(text, "the file")
    said = refused.value.message.splitlines()
    if len(said) > 1:
        assert said.pop(0) == f"the file has {len(said)} problems:"
    assert refused.value.mend
    return [line.removeprefix("the file:") for line in said]


def policies(*lines: str) -> str:
    """A policy that is right but for what ``lines`` add."""
    head = ["policies:", "- name: a", '  select: {names: ["*"]}', "  schedule: {every: 6h}"]
    return "\n".join([*head, *lines, ""])


def test_a_file_is_read_as_it_is_written() -> None:
    night = Schedule(cron="0 2 * * 1-5", timezone="Europe/Vienna", window=14400, spread=5400)
    labels = {
        **{"tier": "gold", "zip": "0644", "on": "no", "at": "22:30"},
        **{"since": "2026-01-01", "half": "0.5", "no": "null"},
    }
    select = Selector(names=("web-*", "db-?"), labels=labels)
    assert read(GOOD, "f") == PolicyDocument(
        (
            Policy(
                name="gold",
                select=select,
                exclude=Selector(hosts=("old-*",)),
                disks=("vda",),
                schedule=night,
                full_every=FullEvery(30, 7),
                retention=RetentionRules(daily=7, within=172800),
                rpo=93600,
                speed=50 * 2**20,
                priority=-3,
                verify=Schedule(cron=night.cron, timezone=night.timezone, window=14400, spread=0),
                late="skip",
            ),
            Policy("rest", select, Schedule(every=21600)),
        ),
        Limits(per_host=2, total=40),
    )
    assert read("policies: []", "f") == PolicyDocument()


def test_what_is_read_goes_over_the_wire_and_is_yaml_as_it_goes() -> None:
    document = read(GOOD, "f")
    plain = schemas.dump(document)
    assert schemas.load(PolicyDocument, json.loads(json.dumps(plain))) == document
    assert read(json.dumps(plain, indent=2), "f") == document


def test_all_problems_are_told_at_once_by_their_lines() -> None:
    text = """\
policies:
  - name: a
    select: {}
    shedule: {cron: "0 2 * * *"}
    rpo: 26x
    enabled: yes
  - name: a
    select: {names: [], labels: {"a b": x}, uuids: [ABC]}
    schedule: {cron: "0 2 * * 9", timezone: Europe/Wien, window: 22:30}
    priority: 1_000
    retention: {daily: seven, dayly: 3}
    speed: 0644
    limits: {per_host: 0x2, total: -1}
  - foo
  - {name: b, select: {names: ["*"]}, schedule: {cron: "0 0 31 2 *"}, disks: vda}
limit: 3
"""
    assert problems(text) == [
        "2: policies[0].schedule: is missing",
        "4: policies[0].shedule: unknown field; did you mean schedule?",
        "5: policies[0].rpo: must be a duration such as 90s, 30m, 6h, 2d or 1d12h",
        "6: policies[0].enabled: must be true or false",
        "7: policies[1].name: there is a policy 'a' above",
        "8: policies[1].select.labels.a b: use letters, digits, '_', '.', '-'",
        "8: policies[1].select.uuids[0]: must be a uuid, in lower case",
        "9: policies[1].schedule.cron: is not a cron expression: Bad day-of-week",
        "9: policies[1].schedule.timezone: must be an IANA time zone such as Europe/Vienna",
        "9: policies[1].schedule.window: must be a duration such as 90s, 30m, 6h, 2d or 1d12h",
        "10: policies[1].priority: must be a whole number",
        "11: policies[1].retention.daily: must be a whole number",
        "11: policies[1].retention.dayly: unknown field; did you mean daily?",
        "12: policies[1].speed: must be bytes per second such as 50M or 1G, or 0 for no limit",
        "13: policies[1].limits.per_host: must be a whole number",
        "13: policies[1].limits.total: must not be negative",
        "14: policies[2]: must be a mapping of fields",
        '15: policies[3].disks: must be a list, such as ["web-*"]',
        "15: policies[3].schedule.cron: is not a cron expression: Bad day-of-month",
        "16: limit: unknown field; did you mean limits?",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  select: {}", 'select: means no domain: name some, or all with names: ["*"]'),
        ("  schedule: {}", "schedule.cron: give either cron or every"),
        ('  schedule: {every: 1h, cron: "0 2 * * *"}', "schedule.cron: give either cron or every"),
        ("  schedule: {every: 59s}", "schedule.every: must be a minute or more"),
        ("  schedule: {every: 1h, spread: 2h}", "schedule.spread: must fit into the window"),
        ('  schedule: {cron: "0 2 * * *", spread: 61m}', "schedule.spread: must fit into the"),
        ("  schedule: {every: 1h, spread: -2}", "schedule.spread: must be a duration such as"),
        (
            "  schedule: {every: 1d, timezone: Europe/Vienna}",
            "schedule.timezone: goes with cron: every counts from midnight UTC",
        ),
        ("  schedule: {every: 1h, window: 32d}", "schedule.window: must be 31 days at most"),
        ("  schedule: {every: 99999999999d}", "schedule.every: must be 100 years at most"),
        ('  schedule: {cron: "* * * *"}', "schedule.cron: must have five fields"),
        ('  schedule: {cron: "0 0 30 2 *"}', "schedule.cron: is not a cron expression"),
        ('  schedule: {cron: "0 2 * * *", timezone: ../../etc}', "schedule.timezone: must be an"),
        ("  prune: {every: 1d}", "prune: removes what retention does not keep: give retention"),
        ("  rpo: -5", "rpo: must be a duration"),
        ("  speed: 99999999T", "speed: is more than QEMU can count; 0 is no limit"),
        ("  name: a/b", "name: use letters, digits, '_', '.', '-'"),
        ("  enabled: null", "enabled: must not be empty"),
        ("  sync: none", "sync: must be one of: incremental, full"),
        ("  rpo: !int 5", "rpo: tags such as !int mean nothing here"),
        ("  ? [a]\n  : b", "a field's name must be text"),
        ("  <<: [3]", "<< takes a mapping, or a list of them"),
        ("  rpo: 1h\n  rpo: 2h", "rpo: is given twice (first in line 5)"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(line: str, said: str) -> None:
    field = line.split(":")[0].strip()
    kept = [own for own in policies().splitlines() if not own.strip(" -").startswith(field)]
    if field == "name":
        kept[1:1] = ["- enabled: true"]
    found = problems("\n".join([*kept, line, ""]))
    assert len(found) == 1, found
    number, _, rest = found[0].partition(": ")
    assert rest.startswith((f"policies[0].{said}", f"policies[0]: {said}")), found
    assert int(number) == len(kept) + 1 + ("twice" in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: is empty: `policies:` and a list of them is needed"),
        ("# nothing\n", "is empty"),
        ("- a\n", "1: must be a mapping with `policies:`"),
        ("foo\n", "1: must be a mapping with `policies:`"),
        ("policies:\n\t- a\n", "2: is not YAML: there is a tab: indent by spaces"),
        ("policies: [1,\n", "2: is not YAML: "),
        (
            "policies: []\n---\npolicies: []\n",
            "a second document begins: put all policies into one",
        ),
        ("policies: []\nlimits: 'x\n", "is not YAML: found unexpected end of stream"),
        ("policies: []\na: b: c\n", "2: is not YAML: mapping values are not allowed here"),
        ("policies: *all\n", "1: is not YAML: found undefined alias"),
        ("policies: []\nlimits: \x00\n", "2: is not YAML: special characters are not allowed"),
        ("policies: &a [*a]\n", "its aliases make it grow without measure"),
        ("policies: " + "[" * 1000, "nested too deeply"),
        ("#" + "x" * LARGEST, f"larger than {LARGEST} bytes"),
    ],
)
def test_what_is_no_policy_file_is_refused_with_the_line(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(text, "f")
    assert said in refused.value.message


def test_aliases_that_grow_without_measure_are_refused_before_they_do() -> None:
    rows = [f"- &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 12)]
    found = problems("\n".join(["policies:", "- &b0 [x, x, x, x, x, x, x, x, x]", *rows, ""]))
    assert len(found) == 1
    assert found[0].endswith("its aliases make it grow without measure")


def test_reading_never_fails_otherwise_whatever_is_done_to_a_good_file() -> None:
    rng = random.Random(3)
    for _ in range(60):
        text = list(GOOD)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text))
            text[at] = rng.choice(
                ["", "\n", "\t", ":", "{", "]", "&a ", "*gold", "- ", "é", "#", "!"]
            )
        try:
            read("".join(text), "f")
        except InvalidRequest as error:
            assert error.message.startswith("f")


THREE = """\
# The fleet.
policies:
  # For all.
  - name: nightly   # why not
    select: &all
      names: ["*"]
    schedule: {every: 1d}

  # Gold ones.
  # Two lines.
  - name: gold
    select: *all
    schedule: {every: 6h}

  # The last.
  - name: last
    select: {names: [x]}
    schedule: {every: 6h}
# The end.
"""


def test_a_policy_is_taken_out_and_all_else_stays_as_it_was() -> None:
    left = without(THREE, "gold", "f")
    begin, end = THREE.index("  # Gold ones."), THREE.index("\n  # The last.")
    assert left == THREE[:begin] + THREE[end:]
    last = without(THREE, "last", "f")
    assert last == THREE[: THREE.index("\n  # The last.")] + "# The end.\n"
    # Another one names what is defined in it: that is defined there now.
    moved = without(THREE, "nightly", "f")
    assert [policy.name for policy in read(moved, "f").policies] == ["gold", "last"]
    assert read(moved, "f").policies == read(THREE, "f").policies[1:]
    assert "# Two lines." in moved
    alone = without(policies(), "a", "f")
    assert read(alone, "f") == PolicyDocument()
    with pytest.raises(InvalidRequest, match="There is no policy 'silver'") as refused:
        without(THREE, "silver", "f")
    assert refused.value.mend == "Known policies: nightly, gold, last."


def test_the_example_is_valid_and_so_is_each_one_in_the_documents() -> None:
    root = Path(__file__).parents[2]
    example = read((root / "deploy" / "policies.yaml.example").read_text(), "the example")
    assert [policy.name for policy in example.policies] == ["gold", "nightly"]
    text = (root / "docs" / "policies.md").read_text()
    smallest = text[text.index("    policies:\n") : text.index("\n\n## Fields")]
    assert len(read(textwrap.dedent(smallest), "the smallest").policies) == 1
    for name in Policy.__dataclass_fields__:
        assert f"| `{name}` |" in text
