"""Another user of the same machine: nothing of a running mesh can be read, used or forged.

Files and processes are tried by a child process with the rights of another user, which only root can make. What listens
on loopback does not see who connects, so it is tried without credentials.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from mesh_process import Mesh, children, http, sample

from mesh.auth import Signer, key_files

NOBODY = 65534
"""User and group id of ``nobody``."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """A mesh under an open umask, in a folder that everybody may enter (pytest's own are private)."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-other-user-"))
    folder.chmod(0o755)
    running = sample(folder / "state", within=("sh", "-c", 'umask 000; exec "$@"', "sh"))
    try:
        running.ready()
        user = {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}
        assert http(f"{running.edge}/v1/users", "POST", user).status == 200
        yield running
    finally:
        code = running.stop()
        shutil.rmtree(folder)
    assert code == 0, running.output()


def as_nobody(work: Callable[[], Any]) -> Any:
    """Return the result of a function, called in a forked process with the rights of ``nobody``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as result:
        text = result.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take the rights of another user")
@pytest.mark.timeout(180)
def test_no_file_and_no_process_can_be_read(mesh: Mesh) -> None:
    files = [str(path) for path in mesh.state.rglob("*")]
    pids = [mesh.process.pid, *children(mesh.process.pid)]
    assert len(files) > 20
    assert len(pids) > 4

    paths = [str(mesh.state), *files, *(f"/proc/{pid}/{name}" for pid in pids for name in ("environ", "mem", "fd"))]

    def opened() -> list[str]:
        found = []
        for path in paths:
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            except OSError:
                continue
            found.append(path)
        return found

    assert as_nobody(opened) == []
    paths = [str(mesh.state.parent), str(mesh.log)]
    assert as_nobody(opened) == paths  # what is not of the mesh can be read, so the attempts are real


async def anonymous(broker: str) -> bytes:
    """Return what the broker says to a client without credentials that publishes an event."""
    place = urlsplit(broker)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(b'CONNECT {"verbose":true}\r\nPUB mesh.event.forged 2\r\n{}\r\nPING\r\n')
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.timeout(180)
async def test_nothing_on_loopback_serves_a_process_without_credentials(mesh: Mesh) -> None:
    running = mesh.running()
    broker, traces = running["broker"], running["traces"]

    assert b"'Authorization Violation'" in await anonymous(broker)
    for path, method in (("/traces", "GET"), ("/v1/traces", "POST")):
        answer = await asyncio.to_thread(http, f"{traces}{path}", method, b"" if method == "POST" else None)
        assert answer.status == 401
    refused = {
        "/login.v1.Login/SetCredential": "PERMISSION_DENIED",
        "/login.v1.Login/OnUserRegistered": "PERMISSION_DENIED",
        "/login.v1.Login/PurgeSessions": "PERMISSION_DENIED",
    }
    async with grpc.aio.insecure_channel(mesh.addresses["login"]) as channel:
        for path, code in refused.items():
            for metadata in ((), (("mesh-identity", "forged"),)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
                assert caught.value.code().name in (code, "UNAUTHENTICATED"), path


@pytest.mark.timeout(180)
async def test_a_service_that_may_call_another_cannot_pretend_to_be_its_trigger(mesh: Mesh) -> None:
    key = key_files.load(mesh.state / "identity", "registration")  # it declares calls to login
    async with grpc.aio.insecure_channel(mesh.addresses["login"]) as channel:
        for path in ("/login.v1.Login/OnUserRegistered", "/login.v1.Login/PurgeSessions"):
            metadata = (("mesh-identity", Signer("registration", key).token(path).decode()),)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "is only for its triggers" in (caught.value.details() or "")
