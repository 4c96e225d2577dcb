"""A disk that is full, under the database and under the broker: callers are told, nothing acknowledged is lost, and all
goes on when there is room again, by itself.

The disk is a tmpfs of a mount namespace of the mesh's own, so the machine's is not touched; Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
from events.v1 import events_pb2 as pb
from events.v1 import events_pb2_grpc
from mesh_process import ROOT, Mesh


def _namespaces() -> bool:
    """Return whether this machine lets its users have mount namespaces of their own."""
    unshare = shutil.which("unshare")
    probe = [unshare or "", "--user", "--map-root-user", "--mount", "true"]
    return unshare is not None and subprocess.run(probe, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(not _namespaces(), reason="a tmpfs of its own needs a mount namespace (Linux, unshare)"),
    pytest.mark.timeout(180),
]

MANIFEST = """protos = ["protos"]
[services.shop]
module = "apps.shop"
serves = ["events.v1.Shop"]
database = "sqlite:///small/shop.db"
"""


class Disk:
    """A small disk that a mesh has on a folder.

    Args:
        folder: Where, as the mesh sees it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen = folder
        folder.mkdir(parents=True)

    @property
    def within(self) -> tuple[str, ...]:
        """What a command stands behind that shall have it."""
        script = 'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"'
        return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(self._folder))

    def fill(self, pid: int) -> None:
        """Leave no room; ``pid`` is of a process that has the disk."""
        self._seen = Path(f"/proc/{pid}/root{self._folder}")
        with (self._seen / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Make room."""
        (self._seen / "ballast").unlink()


@contextmanager
def shop(folder: Path, disk: Disk) -> Iterator[Mesh]:
    shutil.copytree(ROOT / "tests/protos/events", folder / "protos/events")
    (folder / "apps").mkdir()
    shutil.copy(ROOT / "tests/apps/shop.py", folder / "apps/shop.py")
    (folder / "mesh.toml").write_text(MANIFEST)
    (folder / "small").mkdir(exist_ok=True)
    mesh = Mesh(folder / "mesh.toml", folder / ".mesh", {}, within=disk.within)
    try:
        yield mesh.ready()
    finally:
        code = mesh.stop()
    assert code == 0, mesh.output()


class Caller:
    """Calls the shop; knows which orders were acknowledged."""

    def __init__(self, mesh: Mesh) -> None:
        self.acknowledged: list[int] = []
        self._mesh = mesh
        self._stub: Any = events_pb2_grpc.ShopStub(grpc.insecure_channel(mesh.addresses["shop"]))
        self._number = 0

    def order(self) -> str:
        """Publish in a transaction; return the code."""
        self._number += 1
        number = self._number
        code = self._code(lambda: self._stub.Order(pb.OrderRequest(customer="ada", number=number), timeout=10))
        if code == "OK":
            self.acknowledged.append(number)
        return code

    def note(self) -> str:
        """Publish directly; return the code."""
        return self._code(lambda: self._stub.Note(pb.Noted(text="x" * 1000), timeout=10))

    def until(self, call: Callable[[], str], wanted: set[str]) -> str:
        """Call until it ends with one of these codes; return it."""
        until = time.monotonic() + 60
        while (code := call()) not in wanted:
            assert time.monotonic() < until, (code, self._mesh.output())
        return code

    def _code(self, call: Callable[[], Any]) -> str:
        try:
            call()
        except grpc.RpcError as error:
            self.said = str(error.details())
            return str(error.code().name)
        return "OK"


async def orders(mesh: Mesh, wanted: set[int]) -> list[int]:
    """Return the numbers of all orders in the stream, in its order, once all that are wanted are there."""
    client = await nats.connect(mesh.running()["broker"], nkeys_seed=mesh.operator)
    js = client.jetstream()
    try:
        async with asyncio.timeout(60):
            while True:
                last = (await js.stream_info("EVENTS")).state.last_seq
                found = [await js.get_msg("EVENTS", sequence, direct=True) for sequence in range(1, last + 1)]
                numbers = [
                    pb.Ordered.FromString(one.data or b"").number
                    for one in found
                    if ".events-v1-Ordered." in one.subject
                ]
                if wanted <= set(numbers):
                    return numbers
                await asyncio.sleep(0.1)
    finally:
        await client.close()


def test_a_full_disk_under_the_database_refuses_writes_and_loses_none(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "small")
    with shop(tmp_path, disk) as mesh:
        caller = Caller(mesh)
        assert caller.order() == "OK"
        disk.fill(mesh.process.pid)
        assert caller.until(caller.order, {"UNAVAILABLE"}) == "UNAVAILABLE"
        assert caller.said == "the database cannot be written"
        disk.free()
        assert caller.until(caller.order, {"OK"}) == "OK"
        got = asyncio.run(orders(mesh, set(caller.acknowledged)))
        assert got == sorted(set(got))  # once each, and in order: the key is one
        assert set(caller.acknowledged) <= set(got)


def test_a_full_disk_under_the_broker_holds_events_in_the_outbox(tmp_path: Path) -> None:
    disk = Disk(tmp_path / ".mesh/nats")
    with shop(tmp_path, disk) as mesh:
        caller = Caller(mesh)
        assert caller.note() == caller.order() == "OK"
        disk.fill(mesh.process.pid)
        refused = caller.until(caller.note, {"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
        assert refused, caller.said
        assert [caller.order() for _ in range(20)] == ["OK"] * 20
        disk.free()
        assert caller.until(caller.note, {"OK"}) == "OK"
        assert caller.order() == "OK"
        got = asyncio.run(orders(mesh, set(caller.acknowledged)))
        assert got == sorted(set(got))
        assert "no space left on device" in mesh.output()
