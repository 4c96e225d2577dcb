"""The sample mesh by gRPC through its edge: a stock client registers, logs in and asks; the inside stays inside."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest
from mesh_process import ROOT, Mesh

PASSWORD = "correct horse battery"


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.edge.removeprefix("http://")) as opened:
        yield opened


def code_of(call, *arguments, **options) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code().name


def test_a_user_by_grpc(channel: grpc.Channel) -> None:
    from login.v1 import login_pb2, login_pb2_grpc
    from registration.v1 import registration_pb2, registration_pb2_grpc

    users = registration_pb2_grpc.RegistrationStub(channel)
    logins = login_pb2_grpc.LoginStub(channel)
    email = f"{secrets.token_hex(4)}@example.com"
    made = users.Register(
        registration_pb2.RegisterRequest(name=f"u{secrets.token_hex(4)}", email=email, password=PASSWORD)
    )
    tokens = logins.Login(login_pb2.LoginRequest(login=email, password=PASSWORD))
    mine = (("authorization", f"Bearer {tokens.access_token}"),)
    wanted = registration_pb2.GetUserRequest(id=made.id)
    assert users.GetUser(wanted, metadata=mine) == made
    assert code_of(users.GetUser, wanted) == "UNAUTHENTICATED"
    assert code_of(users.GetUser, wanted, metadata=(("authorization", "Bearer no"),)) == "UNAUTHENTICATED"
    assert code_of(users.ListUsers, registration_pb2.ListUsersRequest(), metadata=mine) == "PERMISSION_DENIED"
    inside = login_pb2.SetCredentialRequest()
    for metadata in (None, mine, (("mesh-identity", "registration"),)):
        assert code_of(logins.SetCredential, inside, metadata=metadata) == "PERMISSION_DENIED"
    # What says who calls is the edge's own, whatever the client says:
    spoofed = (*mine, ("mesh-identity", "forged"))
    assert users.GetUser(wanted, metadata=spoofed) == made


def test_a_call_by_grpc_is_one_trace(mesh: Mesh, channel: grpc.Channel) -> None:
    from login.v1 import login_pb2, login_pb2_grpc

    trace = secrets.token_hex(16)
    metadata = (("traceparent", f"00-{trace}-{secrets.token_hex(8)}-01"),)
    login_pb2_grpc.LoginStub(channel).GetKeys(login_pb2.GetKeysRequest(), metadata=metadata)
    assert code_of(channel.unary_unary("/login.v1.Login/Nothing"), b"", metadata=metadata) == "UNIMPLEMENTED"
    until = time.monotonic() + 30
    while True:
        shown = subprocess.run(
            [sys.executable, "-m", "mesh", "trace", trace, "--file", "mesh.toml"],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "MESH_STATE": str(mesh.state)},
        )  # fmt: skip
        if shown.stdout.count("login.v1.Login/GetKeys") == 3 and "_OTHER" in shown.stdout:
            break  # the edge's span, its onward call, the sidecar's
        assert time.monotonic() < until, shown
