"""Circuit breaker: opens when nothing but failures comes, by both transports, and closes with the first answer."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2

from mesh.call import Call, Metadata
from mesh.errors import Code, DeadlineExceeded, StatusError, Unavailable
from mesh.rpc.client import circuit_breaker
from mesh.rpc.client.circuit_breaker import CircuitBreaker


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(circuit_breaker, "OPEN_DELAY", 0.05)
    monkeypatch.setattr(circuit_breaker, "PROBE_BASE_DELAY", 0.05)


async def outcome(call):
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def fail_until_open(stub, rpc, *methods):
    """Call until the breaker is open; return the number of calls."""
    calls = 0
    async with asyncio.timeout(30):
        while not stub.target.breaker.is_open:
            for name in methods:
                await outcome(getattr(stub, name)(FAIL(rpc), timeout=30))
                calls += 1
    return calls


def FAIL(rpc):  # noqa: N802 - a request that all tests use
    return rpc.pb.EchoRequest(fail=rpc.pb.Failure(code=14, message="the database is gone"))


async def test_it_opens_says_why_and_closes_with_the_first_answer(stub, echo, rpc):
    assert await fail_until_open(stub, rpc, "Unary", "Slow") >= circuit_breaker.MIN_FAILURES
    stub.target.breaker._probe_at = time.monotonic() + 3600
    before = echo.servicer.calls
    error = await outcome(stub.Unary(rpc.pb.EchoRequest(), timeout=30))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "echo has answered no call since" in error.details()
    assert "UNAVAILABLE: the database is gone; try again in" in error.details()
    assert any(isinstance(detail, error_details_pb2.RetryInfo) for detail in error.status.details)
    await outcome(stub.Idempotent(rpc.pb.EchoRequest(), timeout=30))  # the refusal is not retried
    assert echo.servicer.calls == before
    stub.target.breaker._probe_at = 0.0
    assert await outcome(stub.Unary(rpc.pb.EchoRequest(text="probe"), timeout=30)) is None
    assert not stub.target.breaker.is_open
    assert await outcome(stub.Unary(rpc.pb.EchoRequest(), timeout=30)) is None


async def test_while_it_is_open_one_call_at_a_time_goes_through(stub, echo, rpc, monkeypatch):
    await fail_until_open(stub, rpc, "Unary", "Slow")
    monkeypatch.setattr(stub.target.breaker, "_probe_at", 0.0)
    monkeypatch.setattr(stub.target.breaker, "_probe_delay", 60.0)
    before = echo.servicer.calls
    await asyncio.gather(*[outcome(stub.Unary(FAIL(rpc), timeout=30)) for _ in range(20)])
    assert echo.servicer.calls == before + 1


async def test_a_call_that_waits_for_ready_waits(stub, rpc):
    await fail_until_open(stub, rpc, "Unary", "Slow")
    calls = [stub.Unary(rpc.pb.EchoRequest(text="x"), timeout=30, wait_for_ready=True) for _ in range(10)]
    assert [response.text for response in await asyncio.gather(*calls)] == ["x"] * 10
    stub.target.breaker.is_open = True
    stub.target.breaker._probe_at = time.monotonic() + 3600
    error = await outcome(stub.Unary(rpc.pb.EchoRequest(), timeout=0.1, wait_for_ready=True))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_one_method_alone_never_opens_it(stub, rpc):
    loop = asyncio.get_running_loop()
    until = loop.time() + 3 * circuit_breaker.OPEN_DELAY
    calls = 0
    while loop.time() < until or calls < 3 * circuit_breaker.MIN_FAILURES:
        slow = rpc.pb.EchoRequest(sleep_ms=10_000)
        await asyncio.gather(
            *[outcome(stub.Unary(slow, timeout=0.02)) for _ in range(5)], outcome(stub.Unary(FAIL(rpc)))
        )
        calls += 6
    assert not stub.target.breaker.is_open


@pytest.mark.parametrize("code", [3, 5, 7, 8, 10, 13, 16])
async def test_errors_of_functions_are_answers(stub, rpc, code):
    request = rpc.pb.EchoRequest(fail=rpc.pb.Failure(code=code, message="no"))
    await outcome(stub.Unary(FAIL(rpc), timeout=30))
    assert stub.target.breaker.has_failures
    assert (await outcome(stub.Unary(request, timeout=30))).code().value[0] == code
    assert not stub.target.breaker.has_failures


async def test_a_server_that_is_gone_is_waited_for(dial, serve, rpc):
    """Calls that wait for a connection do not open the breaker; this is how a restart loses none."""
    first = await serve()
    stub = dial(first.address, name="echo")
    await stub.Unary(rpc.pb.EchoRequest(), timeout=30)
    await first.server.stop(None)
    waiting = [asyncio.ensure_future(outcome(stub.Unary(rpc.pb.EchoRequest(), timeout=0.1))) for _ in range(30)]
    await asyncio.gather(*waiting)
    assert not stub.target.breaker.is_open
    call = stub.Unary(rpc.pb.EchoRequest(text="again"), timeout=30)
    await serve(first.port)
    assert (await call).text == "again"


def call(path="/s.S/A"):
    class Method:
        pass

    method = Method()
    method.path = path
    return Call(method, Metadata())


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(circuit_breaker, "monotonic", clock)
    monkeypatch.setattr(circuit_breaker, "OPEN_DELAY", 3.0)
    return clock


LOST = Unavailable("lost").at("127.0.0.1:1: closed")


def test_a_crash_alone_does_not_open_it(clock):
    breaker = CircuitBreaker()
    for _ in range(500):
        breaker.failed(call(), LOST)
    clock.now += 5
    breaker.failed(call(), DeadlineExceeded("late"))
    assert not breaker.is_open
    for _ in range(circuit_breaker.MIN_FAILURES):
        breaker.failed(call(), LOST)
    assert breaker.is_open, "it crashed again without an answer between"


def test_failures_long_ago_do_not_count(clock):
    breaker = CircuitBreaker()
    for _ in range(circuit_breaker.MIN_FAILURES - 1):
        breaker.failed(call(), LOST)
    clock.now += 2 * circuit_breaker.MAX_FAILURE_INTERVAL
    for _ in range(circuit_breaker.MIN_FAILURES):
        breaker.failed(call(), LOST)
    assert not breaker.is_open


def test_an_answer_forgets_the_failures(clock):
    breaker = CircuitBreaker()
    for turn in range(10):
        for path in ("/s.S/A", "/s.S/B"):
            breaker.failed(call(path), StatusError.of(Code.UNAVAILABLE, "no"))
            breaker.failed(call(path), LOST)
        breaker.answered()
        clock.now += turn
    assert not breaker.is_open
    assert not breaker.has_failures


def test_no_response_to_health_checks_opens_it_after_a_while(clock):
    breaker = CircuitBreaker("login")
    began = clock.now
    breaker.unresponsive(began)
    assert not breaker.is_open
    clock.now += circuit_breaker.UNRESPONSIVE_TIMEOUT
    breaker.unresponsive(began)
    assert breaker.is_open


async def test_it_lets_the_next_call_through_when_a_server_responds_again(clock):
    breaker = CircuitBreaker()
    breaker.unresponsive(clock.now - 60)
    with pytest.raises(Unavailable):
        await breaker.admit(call())
    breaker.retry_now()
    await breaker.admit(call())
    with pytest.raises(Unavailable):
        await breaker.admit(call())
