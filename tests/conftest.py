"""Fixtures of the whole suite: generated stubs of the tests' own contract."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from postgresql import DEFAULT, VERSIONS, Databases
from stuck import pytest_configure, pytest_timeout_set_timer  # noqa: F401 - hooks

from mesh.contract import loader, protoc
from mesh.contract.model import Contract

ROOT = Path(__file__).parent.parent
TEST_STUBS = ROOT / ".mesh" / "test-stubs"

# A busy machine is slow now and then; how long one example took says nothing.
settings.register_profile("mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh")

protoc.generate([ROOT / "tests" / "protos"], TEST_STUBS)
protoc.generate([ROOT / "protos"], ROOT / "gen")
sys.path[:0] = [str(TEST_STUBS), str(ROOT / "gen")]


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The contract of tests/protos."""
    return loader.read(protoc.load([ROOT / "tests" / "protos"], TEST_STUBS))


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[Databases]:
    """Real PostgreSQL servers of this test process."""
    made = Databases()
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres_server(postgres_databases: Databases) -> Any:
    """A real PostgreSQL of this test process."""
    return postgres_databases.server(DEFAULT)


@pytest.fixture
def new_postgres(postgres_databases: Databases) -> Iterator[Callable[[], str]]:
    """Makes an empty database and returns its URL."""
    with postgres_databases.lent(DEFAULT) as make:
        yield make


@pytest.fixture(params=VERSIONS)
def each_postgres(request: pytest.FixtureRequest, postgres_databases: Databases) -> Iterator[Callable[[], str]]:
    """The same on each version that is there."""
    with postgres_databases.lent(request.param) as make:
        yield make


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes an empty database of each kind in turn and returns its URL."""
    if request.param == "postgresql":
        make: Callable[[], str] = request.getfixturevalue("new_postgres")
        return make
    (tmp_path / "data").mkdir()
    return lambda: f"sqlite:///{tmp_path}/data/{secrets.token_hex(4)}.db"
