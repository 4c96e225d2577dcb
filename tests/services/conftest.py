"""The sample mesh, its services on real databases."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mesh.contract import protoc

ROOT = Path(__file__).parent.parent.parent

protoc.generate([ROOT / "protos"], ROOT / "gen")
sys.path[:0] = [str(ROOT / "gen"), str(ROOT)]

from sample import Sample  # noqa: E402 - needs the stubs


@pytest.fixture
async def sample(new_database: Callable[[], str]) -> AsyncIterator[Sample]:
    """All services, started, on databases of each kind."""
    made = Sample(new_database(), new_database(), new_database())
    await made.start()
    yield made
    await made.stop()
