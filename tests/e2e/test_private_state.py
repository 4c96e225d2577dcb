"""A running mesh leaves nothing that another user of the machine can open, whatever the umask."""

from __future__ import annotations

import json
import stat
from functools import partial
from pathlib import Path

import pytest
from mesh_process import children, http, sample


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


@pytest.mark.timeout(180)
def test_planted_secrets_reach_no_log_trace_or_file(tmp_path: Path) -> None:
    """The password of an admin, that of a user, and the tokens of both are used in right and in wrong ways."""
    admin, user = "planted-admin-secret", "planted-user-secret"
    mesh = sample(
        tmp_path / "state",
        MESH_SERVICES_REGISTRATION_SETTINGS_ADMIN_PASSWORD="{secret:admin_password}",
        MESH_SECRET_ADMIN_PASSWORD=admin,
        MESH_SECRET_UNUSED="planted-unused-secret",
    )
    try:
        mesh.ready()
        planted = [admin.encode(), user.encode(), b"planted-"]
        environments = b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in children(mesh.process.pid))
        assert b"planted-admin-secret" in environments
        assert b"planted-unused-secret" not in environments
        for name in ("Ada", "Ada"):  # the second one exists already
            body = {"name": name, "email": "ada@example.com", "password": user}
            assert http(f"{mesh.edge}/v1/users", "POST", body).status in (200, 409)
        for name, password in (("admin", admin), ("Ada", user)):
            login = partial(http, f"{mesh.edge}/v1/sessions", "POST", {"login": name, "password": password})
            mesh.until(lambda login=login: login().status == 200)
            answer = login()
            planted += [token.encode() for key, token in answer.json.items() if "oken" in key and len(token) > 20]
            assert http(f"{mesh.edge}/v1/users", token=answer.json["accessToken"]).status in (200, 403)
            assert http(f"{mesh.edge}/v1/users", token=answer.json["accessToken"] + "x").status == 401
            assert http(f"{mesh.edge}/v1/sessions", "POST", {"login": name, "password": f"{password}?"}).status == 401
            assert http(f"{mesh.edge}/v1/sessions", "POST", {"login": name, "pasword": password}).status == 400
        assert len(planted) > 4
        running = mesh.running()
        found = http(f"{running['traces']}/traces?limit=1000&wait=1", token=running["traces_secret"]).json["traces"]
        assert len(found) > 8
        shown = {"log": mesh.output().encode()}
        for trace in found:
            one = http(f"{running['traces']}/traces/{trace['trace_id']}", token=running["traces_secret"])
            shown[f"trace {one.json['trace_id']} {trace['name']}"] = json.dumps(one.json).encode()
        for path in mesh.state.rglob("*"):
            if path.is_file() and "bytecode" not in path.parts:
                shown[str(path)] = path.read_bytes()
        assert [(place, secret) for place, text in shown.items() for secret in planted if secret in text] == []
    finally:
        assert mesh.stop() == 0
