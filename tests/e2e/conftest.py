"""One sample mesh for all tests that leave it as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "telemetry")]  # the collectors are the telemetry tests'

from mesh_process import Mesh, sample


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    running = sample(tmp_path_factory.mktemp("sample") / "state")
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()
