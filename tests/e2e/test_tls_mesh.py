"""A mesh with ``tls = "on"``: everything that connects to a service has a certificate, and plain text is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from mesh_process import Mesh, http, sample

USER = {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}


def mesh_command(mesh: Mesh, *words: str, tls: str = "on") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mesh", *words]
    environ = {"MESH_STATE": str(mesh.state), "MESH_TLS": tls, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("channel", ["ngh2", "grpcio"])
def test_services_of_a_mesh_speak_tls_only(tmp_path: Path, channel: str) -> None:
    mesh = sample(tmp_path / "state", MESH_TLS="on", MESH_CHANNEL=channel)
    try:
        mesh.ready()
        assert (
            http(f"{mesh.edge}/v1/users", "POST", USER).status == 200
        )  # the edge calls a service, which calls another
        login = {"login": "Ada", "password": USER["password"]}
        mesh.until(lambda: http(f"{mesh.edge}/v1/sessions", "POST", login).status == 200)  # after an event
        healthy = mesh_command(mesh, "health")
        assert (healthy.returncode, healthy.stdout.count("SERVING")) == (0, 4), healthy
        keys = mesh_command(mesh, "call", "login.v1.Login/GetKeys")
        assert '"kty": "OKP"' in keys.stdout, keys
        internal = mesh_command(mesh, "call", "login.v1.Login/SetCredential")
        assert "is only for services of the mesh" in internal.stderr
        plain = mesh_command(mesh, "health", "login", tls="off")
        assert "it speaks TLS and this side plain text" in plain.stdout
        with grpc.insecure_channel(mesh.running()["addresses"]["login"]) as stranger:
            with pytest.raises(grpc.RpcError) as refused:
                stranger.unary_unary("/login.v1.Login/GetKeys")(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        assert mesh.stop() == 0
