"""``mesh up`` with events: it runs its own broker, and what was acknowledged outlives every kill."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
from events.v1 import events_pb2 as pb
from events.v1 import events_pb2_grpc
from mesh_process import ROOT, Mesh
from suspend import suspend

MANIFEST = """protos = ["protos"]
[services.shop]
module = "apps.shop"
serves = ["events.v1.Shop"]
database = "sqlite:///.mesh/shop.db"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project that publishes, outside the repository."""
    shutil.copytree(ROOT / "tests/protos/events", tmp_path / "protos/events")
    (tmp_path / "apps").mkdir()
    shutil.copy(ROOT / "tests/apps/shop.py", tmp_path / "apps/shop.py")
    (tmp_path / "mesh.toml").write_text(MANIFEST)
    return tmp_path


@pytest.fixture
def running(folder: Path) -> Iterator[Mesh]:
    mesh = Mesh(folder / "mesh.toml", folder / ".mesh", {})
    try:
        yield mesh.ready()
    finally:
        code = mesh.stop()
    assert code == 0, mesh.output()


def broker_pid(mesh: Mesh) -> int:
    lines = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(mesh.process.pid)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return next(int(line.split()[0]) for line in lines if "nats-server" in line)


def stub(mesh: Mesh) -> Any:
    channel = grpc.insecure_channel(mesh.addresses["shop"])
    return events_pb2_grpc.ShopStub(channel)


def events(mesh: Mesh, count: int) -> list[Any]:
    """Return the first events of the stream, once there are so many, and check that there are no more."""

    async def read() -> list[Any]:
        client = await nats.connect(mesh.running()["broker"], nkeys_seed=mesh.operator)
        js = client.jetstream()
        async with asyncio.timeout(30):
            while (await js.stream_info("EVENTS")).state.messages < count:  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.05)
        assert (await js.stream_info("EVENTS")).state.messages == count
        found = [await js.get_msg("EVENTS", sequence, direct=True) for sequence in range(1, count + 1)]
        await client.close()
        return found

    return asyncio.run(read())


def test_it_runs_its_own_broker_and_stops_it_last(running: Mesh) -> None:
    stub(running).Order(pb.OrderRequest(customer="ada", count=3), timeout=10)
    stub(running).Note(pb.Noted(text="direct"), timeout=10)
    found = events(running, 4)
    assert {message.headers["ce-source"] for message in found} == {"shop"}
    output = running.output()
    assert "nats-server" in output.split("The mesh is ready")[0]
    assert "Starting nats-server" not in output
    assert running.stop() == 0, running.output()
    assert "broker stopped with" not in running.output()


def test_a_publication_is_a_span_of_its_call(running: Mesh) -> None:
    stub(running).Order(pb.OrderRequest(customer="ada"), timeout=10)
    (message,) = events(running, 1)
    trace_id = message.headers["ce-traceparent"].split("-")[1]
    until = time.monotonic() + 20
    while True:
        shown = subprocess.run(
            [sys.executable, "-m", "mesh", "trace", trace_id, "--file", str(running.state.parent / "mesh.toml")],
            capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        if "publish events.v1.Ordered" in shown:
            break
        assert time.monotonic() < until, shown
        time.sleep(0.2)
    assert "events.v1.Shop/Order" in shown


class Load:
    """Orders one number after the other, 5 ms apart: the processor is of use to those that start again."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.acknowledged: list[int] = []
        self.others: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        shop, number = stub(self.mesh), 0
        while not self._stop.is_set():
            number += 1
            try:
                shop.Order(pb.OrderRequest(customer="ada", number=number), timeout=5, wait_for_ready=True)
            except grpc.RpcError as error:
                self.others.append(error.code().name)
            else:
                self.acknowledged.append(number)
            time.sleep(0.005)

    def progress(self, more: int) -> None:
        """Wait until so many more have been acknowledged."""
        goal, until = len(self.acknowledged) + more, time.monotonic() + 60
        while len(self.acknowledged) < goal:
            assert time.monotonic() < until, (self.others[-10:], self.mesh.output())
            time.sleep(0.01)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


async def numbers(mesh: Mesh, wanted: set[int]) -> list[int]:
    """Return the numbers of all orders in the stream, once all that are wanted are there."""
    client = await nats.connect(mesh.running()["broker"], nkeys_seed=mesh.operator)
    js = client.jetstream()
    async with asyncio.timeout(30):
        while True:
            last = (await js.stream_info("EVENTS")).state.messages
            found = [await js.get_msg("EVENTS", sequence, direct=True) for sequence in range(1, last + 1)]
            got = [pb.Ordered.FromString(message.data or b"").number for message in found]
            if wanted <= set(got):
                await client.close()
                return got
            await asyncio.sleep(0.1)


@pytest.mark.timeout(180)
def test_what_was_acknowledged_outlives_kills_of_broker_and_sidecar(running: Mesh) -> None:
    load = Load(running)
    try:
        load.progress(10)
        for _ in range(3):
            before = broker_pid(running)
            os.kill(before, signal.SIGKILL)
            load.progress(20)  # calls that only write to the outbox go on without the broker
            os.kill(running.child("shop"), signal.SIGKILL)
            load.progress(10)
        assert broker_pid(running) != before
    finally:
        load.stop()
    assert set(load.others) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
    assert "broker died with signal SIGKILL; it starts again" in running.output()
    got = asyncio.run(numbers(running, set(load.acknowledged)))
    assert got == sorted(set(got))  # once each, and in order: the key is one


def test_a_direct_publication_says_that_the_broker_is_away(running: Mesh) -> None:
    shop = stub(running)
    shop.Note(pb.Noted(text="there"), timeout=10)
    suspend(broker_pid(running))
    try:
        with pytest.raises(grpc.RpcError) as caught:
            shop.Note(pb.Noted(text="away"), timeout=3)
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        shop.Order(pb.OrderRequest(customer="ada"), timeout=10)
    finally:
        os.kill(broker_pid(running), signal.SIGCONT)
    until = time.monotonic() + 30
    while True:
        try:
            shop.Note(pb.Noted(text="back"), timeout=3)
        except grpc.RpcError:
            assert time.monotonic() < until
        else:
            break


def test_a_broker_ends_with_a_supervisor_that_is_killed(folder: Path) -> None:
    mesh = Mesh(folder / "mesh.toml", folder / ".mesh", {})
    mesh.ready()
    broker = broker_pid(mesh)
    mesh.process.kill()
    mesh.process.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{broker}").exists() and "Z" not in Path(f"/proc/{broker}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.05)
    (folder / ".mesh/up.json").unlink()  # what the killed one wrote
    again = Mesh(folder / "mesh.toml", folder / ".mesh", {})
    try:
        again.ready()
    finally:
        assert again.stop() == 0, again.output()


def test_a_mesh_without_events_starts_no_broker(folder: Path) -> None:
    proto = folder / "protos/events/v1/events.proto"
    text = proto.read_text()
    begin = text.index("  option (meshapi.v1.service)")
    proto.write_text(text[:begin] + text[text.index("  // In a transaction.") :])
    mesh = Mesh(folder / "mesh.toml", folder / ".mesh", {})
    try:
        mesh.ready()
        assert mesh.running()["broker"] == ""
        assert "nats-server" not in mesh.output()
        with pytest.raises(grpc.RpcError, match=r"service shop declares no events; add publishes") as caught:
            stub(mesh).Note(pb.Noted(text="denied"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    finally:
        assert mesh.stop() == 0, mesh.output()


def test_a_sidecar_by_hand_needs_to_be_told_of_a_broker(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "mesh", "keys"], cwd=folder, check=True, capture_output=True)
    ended = subprocess.run(
        [sys.executable, "-m", "mesh", "sidecar", "shop"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "MESH_SERVICES_SHOP_LISTEN": "127.0.0.1:9"},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "mesh.toml broker: shop uses events, and no broker is named" in ended.stdout + ended.stderr
