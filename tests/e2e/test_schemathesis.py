"""Schemathesis from the served document against the running sample mesh: everything that happens is documented."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mesh_process import Mesh, http, sample

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "use_after_free",
)  # fmt: skip
PASSWORD = "admin's own password"


@pytest.fixture(scope="module")
def own_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of its own: users come and go in it, the admin too."""
    running = sample(tmp_path_factory.mktemp("schemathesis") / "state")
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()


@pytest.mark.slow
@pytest.mark.parametrize("who", ["nobody", "admin"])
def test_nothing_undocumented_happens(own_mesh: Mesh, tmp_path: Path, who: str) -> None:
    headers = []
    if who == "admin":
        tokens = http(f"{own_mesh.edge}/v1/sessions", "POST", {"login": "admin", "password": PASSWORD}).json
        headers = ["--header", f"authorization: Bearer {tokens['accessToken']}"]
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{own_mesh.edge}/openapi.json", *headers,
            "--exclude-path", "/v1/audit:watch",  # it has no end, and Schemathesis waits for it
            "--checks", ",".join(CHECKS), "--max-examples", "30", "--generation-deterministic", "--no-color",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=110, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "Tested: 18" in done.stdout
