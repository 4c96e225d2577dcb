"""One sample mesh for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mesh_process import Mesh, sample


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    running = sample(tmp_path_factory.mktemp("sample") / "state", MESH_EDGE_CLIENT_TRACE="trust")
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()
