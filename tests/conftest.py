"""Fixtures of the whole suite: generated stubs of the tests' own contract."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from mesh import descriptors, protoc
from mesh.contract import Contract

ROOT = Path(__file__).parent.parent
TEST_STUBS = ROOT / ".mesh" / "test-stubs"

# A busy machine is slow now and then; how long one example took says nothing.
settings.register_profile("mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mesh")

protoc.generate([ROOT / "tests" / "protos"], TEST_STUBS)
sys.path.insert(0, str(TEST_STUBS))


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The contract of tests/protos."""
    return descriptors.read(protoc.load([ROOT / "tests" / "protos"], TEST_STUBS))
