"""Outlier ejection with real servers: frozen, blocked, failing and slow replicas."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack

import grpc
import pytest
from fault_server import HEALTH, PATH
from ngh2 import Setting
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from replica_process import replica
from suspend import suspend

from mesh.rpc.client import (
    circuit_breaker,
    client_metrics,
    endpoint_health,
    health_probe,
    http2_connection,
    outlier_ejection,
)

UNAVAILABLE = [(b"grpc-status", b"14"), (b"grpc-message", b"not now")]


@pytest.fixture
def transport():
    return "ngh2"


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(http2_connection, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(http2_connection, "SILENCE_DELAY", 0.1)
    monkeypatch.setattr(outlier_ejection, "PROBE_BASE_DELAY", 0.05)
    monkeypatch.setattr(outlier_ejection, "PROBE_MAX_DELAY", 0.1)
    monkeypatch.setattr(endpoint_health, "EJECTION_BASE_DELAY", 0.05)


def ejection_of(stub_or_channel):
    return stub_or_channel.target._handler.pool.ejection


def unary(channel, path=PATH, **options):
    return channel.unary_unary(path)(b"", **{"timeout": 10, **options})


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the state of a channel has no event
            await asyncio.sleep(0.01)


async def both(channel, servers):
    """Call until each server has a connection and has answered."""
    async with asyncio.timeout(30):
        while len(channel.target._handler.pool.ready) < len(servers):
            await asyncio.gather(unary(channel), return_exceptions=True)


class Answers:
    """Answers of one server: health checks always, unless ``dead``; calls by ``answer``."""

    def __init__(self, answer=None):
        self.answer = answer or (lambda peer, stream_id: peer.respond(stream_id))
        self.dead = False
        self.calls = 0
        self.health_checks = 0

    def __call__(self, peer, stream_id):
        if peer.requests[stream_id][b":path"] == HEALTH:
            self.health_checks += 1
            if not self.dead:
                peer.respond(stream_id, b"\x08\x01")
            return
        self.calls += 1
        if not self.dead:
            self.answer(peer, stream_id)


def refuse(peer, stream_id):
    peer.respond(stream_id, trailers=UNAVAILABLE)


@pytest.mark.parametrize("kind", ["grpcio", "sidecar"])
@pytest.mark.parametrize("way", ["stopped", "blocked"])
@pytest.mark.parametrize("streams", [False, True], ids=["unary", "streams"])
async def test_a_replica_that_does_not_respond_gets_no_calls(kind, way, streams, dial, rpc, monkeypatch):
    monkeypatch.setattr(health_probe, "PROBE_TIMEOUT", 0.3)

    async def call(seconds):
        request = rpc.pb.EchoRequest(text="x", count=1)
        if streams:
            return [response async for response in stub.ServerStream(request, timeout=seconds)]
        return await stub.Unary(request, timeout=seconds)

    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(kind)) for _ in range(2)]
        stub = dial(*[each.address for each in replicas])
        while len(stub.target._handler.pool.ready) < 2:
            await call(30)
        if way == "stopped":
            suspend(replicas[0].pid)
        else:
            os.kill(replicas[0].pid, signal.SIGUSR1)
        failed = 0
        async with asyncio.timeout(30):
            while not ejection_of(stub).ejected:
                results = await asyncio.gather(*[call(1.0) for _ in range(4)], return_exceptions=True)
                failed += sum(isinstance(result, grpc.aio.AioRpcError) for result in results)
        assert failed <= 20
        for _ in range(50):
            await call(30)
        if way == "stopped":
            os.kill(replicas[0].pid, signal.SIGCONT)
            await until(lambda: not ejection_of(stub).ejected)
            for _ in range(50):
                await call(30)


async def test_calls_that_may_be_repeated_are_answered_by_the_other(faulty, dial, rpc, monkeypatch):
    monkeypatch.setattr(health_probe, "PROBE_TIMEOUT", 0.2)
    one, other = Answers(), Answers()
    servers = [await faulty(one), await faulty(other)]
    stub = dial(*[server.address for server in servers])
    while not (one.calls and other.calls):
        await stub.Idempotent(rpc.pb.EchoRequest(), timeout=30)
    one.dead = True
    calls = [stub.Idempotent(rpc.pb.EchoRequest(), timeout=30) for _ in range(20)]
    async with asyncio.timeout(20):  # the deadline is later
        await asyncio.gather(*calls)
    assert ejection_of(stub).ejected == 1


async def test_the_last_one_that_responds_gets_all_calls_and_if_none_does_they_go_to_all(faulty, channel, monkeypatch):
    monkeypatch.setattr(health_probe, "PROBE_TIMEOUT", 0.1)
    answers = [Answers(), Answers()]
    servers = [await faulty(each) for each in answers]
    made = channel(*[server.address for server in servers])
    await both(made, servers)
    for each in answers:
        each.dead = True
    calls = [asyncio.ensure_future(unary(made, timeout=30)) for _ in range(8)]
    await until(lambda: ejection_of(made).ejected == 2)
    assert len(made.target._handler.pool.ready) == 2
    for each in answers:
        each.dead = False
    made.target.breaker.is_open = False
    await until(lambda: not ejection_of(made).ejected)
    for call in calls:
        call.cancel()
    await unary(made)


async def test_a_replica_that_answers_unavailable_is_ejected_tried_and_returned(faulty, channel):
    bad, good = Answers(refuse), Answers()
    servers = [await faulty(bad), await faulty(good)]
    made = channel(*[server.address for server in servers])
    await both(made, servers)
    ejection = ejection_of(made)
    async with asyncio.timeout(30):
        while not ejection.ejected:
            await asyncio.gather(*[unary(made) for _ in range(4)], return_exceptions=True)
    assert bad.calls >= endpoint_health.CONSECUTIVE_FAILURES
    before = bad.calls
    for _ in range(20):
        await unary(made)
    [health] = [each.health for each in ejection._members() if each.health.ejections]
    async with asyncio.timeout(30):
        while health.ejections < 2:  # a trial has failed
            await asyncio.gather(unary(made), return_exceptions=True)
    assert bad.calls <= before + 2, "a trial is one call"
    bad.answer = good.answer
    async with asyncio.timeout(30):
        while ejection.ejected or health.trial_began:
            await asyncio.gather(unary(made), return_exceptions=True)
    before = bad.calls
    for _ in range(50):
        await unary(made)
    assert bad.calls > before


@pytest.mark.parametrize("code", [3, 5, 8, 13, 16])
async def test_errors_of_functions_eject_nobody(faulty, channel, code):
    bad = Answers(lambda peer, stream_id: peer.respond(stream_id, trailers=[(b"grpc-status", b"%d" % code)]))
    good = Answers()
    servers = [await faulty(bad), await faulty(good)]
    made = channel(*[server.address for server in servers])
    await both(made, servers)
    while bad.calls < 50:
        await asyncio.gather(unary(made), return_exceptions=True)
    assert not ejection_of(made).ejected
    assert not made.target.breaker.has_failures


async def test_a_method_that_is_slow_everywhere_ejects_nobody(faulty, channel):
    def answer(peer, stream_id):
        if peer.requests[stream_id][b":path"] == PATH.encode():
            peer.respond(stream_id)

    answers = [Answers(answer), Answers(answer)]
    servers = [await faulty(each) for each in answers]
    made = channel(*[server.address for server in servers])
    await both(made, servers)
    for _ in range(5):
        slow = [unary(made, "/test.Service/Slow", timeout=0.05) for _ in range(10)]
        await asyncio.gather(*slow, unary(made), return_exceptions=True)
    assert not ejection_of(made).ejected
    assert not made.target.breaker.is_open


async def test_a_replica_far_slower_than_the_other_is_ejected(faulty, channel, monkeypatch):
    monkeypatch.setattr(outlier_ejection, "COMPARISON_INTERVAL", 0.5)
    loop = asyncio.get_running_loop()

    def respond_late(peer, stream_id):
        def respond():
            peer.respond(stream_id)
            peer.flush()

        loop.call_later(0.2, respond)

    slow, quick = Answers(respond_late), Answers()
    servers = [await faulty(slow), await faulty(quick)]
    made = channel(*[server.address for server in servers])
    async with asyncio.timeout(30):
        while not ejection_of(made).ejected:
            await asyncio.gather(*[unary(made) for _ in range(100)])
    before = slow.calls
    await asyncio.gather(*[unary(made) for _ in range(20)])
    assert slow.calls <= before + 1


async def test_a_slow_call_to_a_server_that_responds_is_left_alone(faulty, channel):
    """Silence alone is no sign: the server responds to the health check."""
    held = []
    answers = [Answers(lambda peer, stream_id: held.append((peer, stream_id))) for _ in range(2)]
    servers = [await faulty(each) for each in answers]
    made = channel(*[server.address for server in servers])
    calls = [asyncio.ensure_future(unary(made)) for _ in range(2)]
    await until(lambda: sum(each.health_checks for each in answers) >= 2)
    for peer, stream_id in held:
        peer.respond(stream_id, b"late")
        peer.flush()
    assert await asyncio.gather(*calls) == [b"late", b"late"]
    assert not ejection_of(made).ejected


async def test_a_server_whose_streams_are_all_in_use_is_left_alone(faulty, channel):
    """A health check would wait for a stream, which says nothing of the server."""
    held = []
    answers = [Answers(lambda peer, stream_id: held.append((peer, stream_id))) for _ in range(2)]
    servers = [await faulty(each, {Setting.MAX_CONCURRENT_STREAMS: 1}) for each in answers]
    made = channel(*[server.address for server in servers])
    calls = [asyncio.ensure_future(unary(made)) for _ in range(2)]
    await until(lambda: len(held) == 2)
    await asyncio.sleep(4 * http2_connection.SILENCE_DELAY)  # that nothing happens has no event
    assert not ejection_of(made).ejected
    for peer, stream_id in held:
        peer.respond(stream_id, b"late")
        peer.flush()
    assert await asyncio.gather(*calls) == [b"late", b"late"]


async def test_calls_to_the_only_replica_fail_at_once_while_it_is_frozen(dial, rpc, monkeypatch):
    monkeypatch.setattr(circuit_breaker, "UNRESPONSIVE_TIMEOUT", 0.2)
    async with replica("sidecar") as only:
        stub = dial(only.address, name="echo")
        await stub.Unary(rpc.pb.EchoRequest(), timeout=30)
        suspend(only.pid)
        waiting = asyncio.ensure_future(stub.Unary(rpc.pb.EchoRequest(text="first"), timeout=60))
        await until(lambda: stub.target.breaker.is_open)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            for _ in range(3):  # one or two of them may be probes, which wait
                await stub.Unary(rpc.pb.EchoRequest(), timeout=2)
        assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        os.kill(only.pid, signal.SIGCONT)
        assert (await waiting).text == "first"
        assert (await stub.Unary(rpc.pb.EchoRequest(text="x"), timeout=30, wait_for_ready=True)).text == "x"
        await until(lambda: not stub.target.breaker.is_open)


async def test_what_is_measured(faulty, channel, monkeypatch):
    monkeypatch.setattr(health_probe, "PROBE_TIMEOUT", 0.1)
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("mesh.rpc")
    monkeypatch.setattr(client_metrics, "EJECTIONS", meter.create_counter("mesh.client.ejections"))
    dead, good = Answers(), Answers()
    servers = [await faulty(dead), await faulty(good)]
    made = channel(*[server.address for server in servers], name="echo")
    await both(made, servers)
    dead.dead = True
    calls = [asyncio.ensure_future(unary(made)) for _ in range(4)]
    await until(lambda: ejection_of(made).ejected)
    assert {"mesh.target": "echo"} in [seen.attributes for seen in client_metrics._ejected(None) if seen.value == 1]
    [point] = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    assert (dict(point.attributes), point.value) == ({"mesh.target": "echo", "mesh.reason": "unresponsive"}, 1)
    for call in calls:
        call.cancel()


async def test_a_blocked_event_loop_of_this_side_is_no_fault_of_the_servers(faulty, channel, monkeypatch):
    monkeypatch.setattr(health_probe, "PROBE_TIMEOUT", 0.1)
    held = []
    answers = [Answers(lambda peer, stream_id: held.append((peer, stream_id))) for _ in range(2)]
    servers = [await faulty(each) for each in answers]
    made = channel(*[server.address for server in servers])
    calls = [asyncio.ensure_future(unary(made)) for _ in range(2)]
    await until(lambda: len(held) == 2)
    for _ in range(5):
        time.sleep(0.5)  # noqa: ASYNC251 - the point of the test
        await asyncio.sleep(0.02)
    assert not ejection_of(made).ejected
    for call in calls:
        call.cancel()
