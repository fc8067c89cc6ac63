"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tasks.catalog import Catalog
from tests.lab.stores import KINDS, Stores


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """Databases for catalogs; PostgreSQL starts at first use."""
    made = Stores()
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def catalog(stores: Stores, request: pytest.FixtureRequest) -> Catalog:
    """An empty catalog, once in SQLite and once in PostgreSQL."""
    return stores.catalog(request.param)
