"""A revoked session in a whole mesh: refused at the edge and at each sidecar within seconds, also after restarts."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
from urllib.parse import urlsplit

import grpc
from mesh_process import Mesh
from mesh_process import http as ask
from registration.v1 import registration_pb2, registration_pb2_grpc

PASSWORD = "correct horse battery"
SECONDS = 5
numbers = itertools.count()


def login(mesh: Mesh, name: str, password: str = PASSWORD) -> str:
    answer = ask(f"{mesh.edge}/v1/sessions", "POST", {"login": name, "password": password})
    assert answer.status == 200, answer
    found: str = answer.json["accessToken"]
    return found


def register(mesh: Mesh) -> tuple[str, str]:
    """Return the name and the id of a new user."""
    name = f"revoked{next(numbers)}"
    user = {"name": name, "email": f"{name}@example.com", "password": PASSWORD}
    return name, ask(f"{mesh.edge}/v1/users", "POST", user).json["id"]


def at_edge(mesh: Mesh, token: str) -> int:
    return ask(f"{mesh.edge}/v1/users/me", token=token).status


def at_sidecar(mesh: Mesh, token: str) -> str:
    """Return the code of a call that passes no edge."""
    with grpc.insecure_channel(mesh.addresses["registration"]) as channel:
        stub = registration_pb2_grpc.RegistrationStub(channel)
        metadata = [("authorization", f"Bearer {token}")]
        try:
            stub.GetUser(registration_pb2.GetUserRequest(id="me"), metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined,no-any-return]
    return "OK"


def test_a_session_that_has_ended_is_refused_everywhere_also_after_restarts(mesh: Mesh) -> None:
    name, _ = register(mesh)
    gone, other = login(mesh, name), login(mesh, name)
    for token in (gone, other):
        assert (at_edge(mesh, token), at_sidecar(mesh, token)) == (200, "OK")
    assert ask(f"{mesh.edge}/v1/sessions/current", "DELETE", token=gone).status == 200
    mesh.until(lambda: at_edge(mesh, gone) == 401, SECONDS)
    mesh.until(lambda: at_sidecar(mesh, gone) == "UNAUTHENTICATED", SECONDS)
    assert (at_edge(mesh, other), at_sidecar(mesh, other)) == (200, "OK")
    killed = {component: mesh.child(component) for component in ("login", "edge")}
    for process in killed.values():
        os.kill(process, signal.SIGKILL)
    mesh.until(lambda: all(restarted(mesh, *one) for one in killed.items()))
    mesh.until(lambda: reachable(mesh) and at_edge(mesh, other) == 200)
    mesh.until(lambda: at_sidecar(mesh, other) == "OK")
    assert (at_edge(mesh, gone), at_sidecar(mesh, gone)) == (401, "UNAUTHENTICATED")


def restarted(mesh: Mesh, component: str, killed: int) -> bool:
    try:
        return mesh.child(component) != killed
    except StopIteration:
        return False


def reachable(mesh: Mesh) -> bool:
    try:
        return ask(f"{mesh.edge}/healthz").status == 200
    except OSError:
        return False


def test_a_stream_ends_with_the_role_that_opened_it(mesh: Mesh) -> None:
    admin = login(mesh, "admin", "admin's own password")
    name, user_id = register(mesh)
    role = f"{mesh.edge}/v1/users/{user_id}/roles/admin"
    assert ask(role, "PUT", {}, token=admin).status == 200

    def roles(token: str) -> int:
        return ask(f"{mesh.edge}/v1/audit?pageSize=1", token=token).status

    mesh.until(lambda: roles(login(mesh, name)) == 200, SECONDS)
    token = login(mesh, name)
    connection = http.client.HTTPConnection(urlsplit(mesh.edge).netloc, timeout=30)
    try:
        headers = {"authorization": f"Bearer {token}", "accept": "text/event-stream"}
        connection.request("GET", "/v1/audit:watch?after=1", headers=headers)
        stream = connection.getresponse()
        assert stream.readline().startswith(b"data: ")
        assert ask(role, "DELETE", token=admin).status == 200
        assert b"the session of this token has ended, or its rights have changed" in stream.read()
    finally:
        connection.close()
    assert roles(token) == 401
    assert roles(login(mesh, name)) == 403
    assert roles(admin) == 200
