"""What the documents promise is there."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from tests.integration import test_modes

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def test_every_cell_of_the_table_of_modes_is_a_test_and_every_test_a_cell() -> None:
    cells = re.findall(r"`(test_\w+\[[^\]]+\])`", (ROOT / "docs" / "modes.md").read_text())
    modes = ("test_full", "test_incremental", "test_top", "test_none")
    assert all(callable(getattr(test_modes, mode)) for mode in modes)
    expected = [
        f"{mode}[{state}-{format_}]"
        for mode, format_, state in product(modes, test_modes.FORMATS, test_modes.STATES)
    ]
    assert cells == expected


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_files_and_tests_that_a_document_names_are_there(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"`((?:tests|workers|tasks|virtvault|beat|deploy)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in TESTS, name
    for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
        assert (path.parent / link).exists(), link
