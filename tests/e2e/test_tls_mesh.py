"""A mesh with ``tls = "on"``: everything that connects to a service has a certificate, and plain text is refused."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from mesh_process import Mesh, sample
from mesh_process import http as request
from pki import Pki

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
            request(f"{mesh.edge}/v1/users", "POST", USER).status == 200
        )  # the edge calls a service, which calls another
        login = {"login": "Ada", "password": USER["password"]}
        mesh.until(lambda: request(f"{mesh.edge}/v1/sessions", "POST", login).status == 200)  # after an event
        healthy = mesh_command(mesh, "health")
        assert (healthy.returncode, healthy.stdout.count("SERVING")) == (0, 4), healthy
        keys = mesh_command(mesh, "call", "login.v1.Login/GetKeys")
        assert '"kty": "OKP"' in keys.stdout, keys
        by_address = mesh_command(mesh, "call", mesh.addresses["login"], "login.v1.Login/GetKeys")
        assert (by_address.returncode, by_address.stdout) == (0, keys.stdout), by_address
        internal = mesh_command(mesh, "call", "login.v1.Login/SetCredential")
        assert "is only for services of the mesh" in internal.stderr
        plain = mesh_command(mesh, "health", "login", tls="off")
        assert "it speaks TLS and this side plain text" in plain.stdout
        dead = mesh_command(mesh, "events", "dead")  # over TLS, as the services
        assert (dead.returncode, dead.stdout, dead.stderr) == (0, "no dead letters\n", "")
        check_broker(mesh)
        with grpc.insecure_channel(mesh.running()["addresses"]["login"]) as stranger:
            with pytest.raises(grpc.RpcError) as refused:
                stranger.unary_unary("/login.v1.Login/GetKeys")(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        assert mesh.stop() == 0


def check_broker(mesh: Mesh) -> None:
    """Check that the broker speaks TLS with its newest certificate, and nothing else."""
    scheme, _, address = mesh.running()["broker"].partition("://")
    assert scheme == "tls"
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), 30) as plain:
        assert plain.recv(65536).startswith(b"INFO ")
        plain.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        assert b"PONG" not in plain.recv(65536)  # it closes the connection
    roots = mesh.state / "identity" / "roots.pem"

    def presented() -> str:
        context = ssl.create_default_context(cafile=str(roots))
        with socket.create_connection((host, int(port)), 30) as plain:
            plain.recv(65536)
            with context.wrap_socket(plain, server_hostname=host) as secured:
                return str((secured.getpeercert() or {})["serialNumber"])

    serial = presented()
    assert mesh_command(mesh, "keys", "rotate-root").returncode == 0
    mesh.until(lambda: presented() != serial)


def https(url: str, context: ssl.SSLContext, method: str = "GET", body: bytes | None = None) -> tuple[int, str, bytes]:
    """Return status, HSTS and body of a response."""
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(url, data=body, method=method, headers=headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(asked, timeout=30, context=context) as response:  # noqa: S310 - loopback
        return response.status, response.headers["strict-transport-security"], response.read()


@pytest.mark.timeout(180)
def test_the_edge_speaks_https_and_redirects_to_it(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    leaf = str(pki.issue("edge").certificate)
    with socket.create_server(("127.0.0.1", 0)) as free:
        plain = f"127.0.0.1:{free.getsockname()[1]}"
    mesh = sample(
        tmp_path / "state",
        MESH_EDGE_TLS_CERTIFICATE=leaf,
        MESH_EDGE_TLS_PRIVATE_KEY=leaf,
        MESH_EDGE_TLS_REDIRECT=plain,
    )
    try:
        mesh.ready()
        assert mesh.edge.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(pki.folder / "roots.pem"))
        status, hsts, _ = https(f"{mesh.edge}/v1/users", context, "POST", json.dumps(USER).encode())
        assert (status, hsts) == (200, "max-age=2592000")
        connection = http.client.HTTPConnection(plain, timeout=30)
        connection.request("POST", "/v1/users?a=b", body=b"{}")
        redirect = connection.getresponse()
        assert (redirect.status, redirect.headers["location"]) == (308, f"{mesh.edge}/v1/users?a=b")
        connection.close()
        document = json.loads(https(f"{mesh.edge}/openapi.json", context)[2])
        assert all(not server["url"].startswith("http:") for server in document.get("servers", []))
        healthy = subprocess.run(
            [sys.executable, "-m", "mesh", "health", mesh.edge], capture_output=True, text=True, timeout=60, check=False
        )
        assert healthy.stdout.endswith(": SERVING\n"), healthy
        serial = _serial(mesh, context)
        pki.issue("edge")
        mesh.until(lambda: _serial(mesh, context) != serial)
    finally:
        assert mesh.stop() == 0


def _serial(mesh: Mesh, context: ssl.SSLContext) -> str:
    host, _, port = mesh.edge.removeprefix("https://").rpartition(":")
    with (
        socket.create_connection((host, int(port)), 30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        return str((secured.getpeercert() or {})["serialNumber"])
