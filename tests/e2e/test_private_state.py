"""A running mesh leaves nothing that another user of the machine can open, whatever the umask."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from mesh_process import http, sample


@pytest.mark.timeout(180)
def test_state_is_private_under_an_open_umask(tmp_path: Path) -> None:
    mesh = sample(tmp_path / "state", within=("sh", "-c", 'umask 000; exec "$@"', "sh"))
    try:
        mesh.ready()
        user = {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}
        assert http(f"{mesh.edge}/v1/users", "POST", user).status == 200
        state = mesh.state
        mesh.until(lambda: list(state.glob("*.pipe")))
        modes = {
            str(path.relative_to(state)): stat.S_IMODE(path.lstat().st_mode)
            for pattern in ("up.json", "*.db", "*.db-wal", "*.db-shm", "*.lock", "*.pipe", "identity/*.key")
            for path in state.glob(pattern)
        }
        assert {"up.json", "login.db", "login.db-wal", "login.db-shm", "identity/login.key"} <= modes.keys()
        assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        traces = mesh.running()["traces"]
        assert http(f"{traces}/traces").status == 401
        assert http(f"{traces}/traces", token=mesh.running()["traces_secret"]).status == 200
        assert "other users of this machine" not in mesh.output()
    finally:
        assert mesh.stop() == 0
