"""Stock stubs and stock servers over our channel: one suite for both transports."""

from __future__ import annotations

import asyncio
import gc
import pickle

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from mesh.boundary import EscapedError, OwnCancellationError
from mesh.call import Call, Metadata, current
from mesh.chaos.endings import ways
from mesh.errors import Code, InvalidArgument, NotFound, RemoteError, StatusError
from mesh.rpc.client import connection_pool, grpcio_transport
from mesh.rpc.client.call_error import CallError

EOF = grpc.aio.EOF
MB = 2**20


async def numbers(rpc, *texts, **fields):
    for text in texts:
        yield rpc.pb.EchoRequest(text=text, **fields)


async def test_unary(stub, rpc):
    call = stub.Unary(rpc.pb.EchoRequest(text="héllo", payload=b"\0\1"), timeout=30)
    answer = await call
    assert (answer.text, answer.payload) == ("héllo", b"\0\1")
    assert isinstance(answer, rpc.pb.EchoResponse)
    assert await call is answer
    assert call.done()
    assert not call.cancelled()
    assert await call.code() == grpc.StatusCode.OK
    assert await call.details() == ""


async def test_empty_messages(stub, rpc):
    assert await stub.Unary(rpc.pb.EchoRequest()) == rpc.pb.EchoResponse()


async def test_server_stream(stub, rpc):
    call = stub.ServerStream(rpc.pb.EchoRequest(text="x", count=50), timeout=30)
    assert [answer.index async for answer in call] == list(range(50))
    assert await call.code() == grpc.StatusCode.OK


async def test_client_stream_takes_async_and_plain_iterators(stub, rpc):
    answer = await stub.ClientStream(numbers(rpc, "a", "b", "c"), timeout=30)
    assert (answer.text, answer.index) == ("a,b,c", 3)
    answer = await stub.ClientStream(iter([rpc.pb.EchoRequest(text="d")]), timeout=30)
    assert (answer.text, answer.index) == ("d", 1)


async def test_client_stream_of_nothing(stub, rpc):
    assert (await stub.ClientStream(numbers(rpc), timeout=30)).index == 0


async def test_client_stream_written(stub, rpc):
    call = stub.ClientStream(timeout=30)
    for text in "abc":
        await call.write(rpc.pb.EchoRequest(text=text))
    await call.done_writing()
    assert (await call).text == "a,b,c"


async def test_bidi_is_full_duplex(stub, rpc):
    call = stub.Bidi(timeout=30)
    for index in range(20):
        await call.write(rpc.pb.EchoRequest(text=str(index)))
        answer = await call.read()
        assert (answer.text, answer.index) == (str(index), index)
    await call.done_writing()
    await call.done_writing()
    assert await call.read() is EOF
    assert await call.read() is EOF
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(rpc.pb.EchoRequest())


async def test_bidi_from_an_iterator(stub, rpc):
    call = stub.Bidi(numbers(rpc, "a", "b"), timeout=30)
    assert [answer.text async for answer in call] == ["a", "b"]
    with pytest.raises(grpc.aio.UsageError):
        await call.write(rpc.pb.EchoRequest())


async def test_calls_are_what_grpc_says_they_are(stub, rpc):
    calls = [
        (stub.Unary(rpc.pb.EchoRequest(), timeout=5), grpc.aio.UnaryUnaryCall),
        (stub.ServerStream(rpc.pb.EchoRequest(), timeout=5), grpc.aio.UnaryStreamCall),
        (stub.ClientStream(numbers(rpc), timeout=5), grpc.aio.StreamUnaryCall),
        (stub.Bidi(numbers(rpc), timeout=5), grpc.aio.StreamStreamCall),
    ]
    for call, kind in calls:
        assert isinstance(call, kind)
        assert 0 < call.time_remaining() <= 5
        await call.wait_for_connection()
        assert await call.code() == grpc.StatusCode.OK


async def test_calls_begun_together_run_together(stub, echo, rpc):
    loop = asyncio.get_running_loop()
    began = loop.time()
    calls = [stub.Unary(rpc.pb.EchoRequest(sleep_ms=200), timeout=30) for _ in range(10)]
    for call in calls:
        await call
    assert loop.time() - began < 1.5


async def test_a_call_that_nobody_awaits_is_made(stub, echo, rpc):
    done = asyncio.Event()
    stub.Unary(rpc.pb.EchoRequest(), timeout=30).add_done_callback(lambda _: done.set())
    await done.wait()
    assert echo.servicer.calls == 1


METADATA = (
    ("x-echo-a", "1"),
    ("x-echo-a", "2"),
    ("x-echo-b-bin", b"\0\xff\1"),
    ("x-echo-b-bin", b"second"),
    ("x-other", "text with spaces, and a comma"),
)
ECHOED = [pair for pair in METADATA if pair[0].startswith("x-echo-")]
TRAILERS = [(key.replace("-bin", "") + "-trailer" + ("-bin" if "-bin" in key else ""), value) for key, value in ECHOED]


@pytest.mark.parametrize("kind", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_metadata_both_ways(stub, echo, rpc, kind):
    request = numbers(rpc, "a") if kind in ("ClientStream", "Bidi") else rpc.pb.EchoRequest(count=1)
    call = getattr(stub, kind)(request, metadata=METADATA, timeout=30)
    assert sorted(await call.initial_metadata()) == sorted(ECHOED)
    if kind in ("Unary", "ClientStream"):
        await call
    else:
        assert len([answer async for answer in call]) == 1
    found = await call.trailing_metadata()
    assert [pair for pair in found if pair[0].startswith("x-echo-")] == sorted(TRAILERS)
    sent = [pair for pair in echo.servicer.metadata if pair[0].startswith("x-")]
    assert sorted(sent) == sorted(METADATA)
    agents = [value for key, value in echo.servicer.metadata if key == "user-agent"]
    assert agents[0].startswith("grpc-python-mesh/")


async def test_metadata_that_cannot_be_sent_is_refused_here(stub, rpc):
    with pytest.raises(ValueError, match="printable ASCII"):
        stub.Unary(rpc.pb.EchoRequest(), metadata=[("x-a", "ü")])
    with pytest.raises(ValueError, match="must be bytes"):
        stub.Unary(rpc.pb.EchoRequest(), metadata=[("x-a-bin", "text")])


@pytest.mark.parametrize("kind", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_errors_with_code_message_details_and_metadata(stub, rpc, kind, transport):
    text = "50% of “ünïcode”\nis lost"
    request = rpc.pb.EchoRequest(fail={"code": 3, "message": text, "details": True})
    source = iter([request]) if kind in ("ClientStream", "Bidi") else request
    call = getattr(stub, kind)(source, metadata=METADATA, timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if kind in ("Unary", "ClientStream") else anext(aiter(call)))
    error = caught.value
    assert isinstance(error, CallError)
    assert isinstance(error, RemoteError)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == text
    if transport == "ngh2" or len(error.initial_metadata()):  # grpc.aio drops headers whose status is noticed first
        assert sorted(error.initial_metadata()) == sorted(ECHOED)
    trailers = error.trailing_metadata()
    assert [pair for pair in trailers if pair[0].startswith("x-echo-")] == sorted(TRAILERS)
    rich = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert (rich.code, rich.message) == (3, text)
    assert type(error.status) is InvalidArgument
    [detail] = error.status.details
    assert isinstance(detail, error_details_pb2.BadRequest)
    assert detail.field_violations[0].field == "text"
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await call.details() == text
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (again.code(), again.details()) == (error.code(), error.details())


@pytest.mark.parametrize("kind", ["Unary", "ServerStream", "ClientStream", "Bidi"])
@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
async def test_a_failed_call_is_the_exception_that_the_function_raised(stub, rpc, kind, code):
    raised = StatusError.of(code, "no such thing")
    request = rpc.pb.EchoRequest(fail={"code": int(code), "message": raised.message, "details": True})
    call = getattr(stub, kind)(iter([request]) if kind in ("ClientStream", "Bidi") else request, timeout=30)
    with pytest.raises(type(raised)) as caught:
        await (call if kind in ("Unary", "ClientStream") else anext(aiter(call)))
    error = caught.value
    assert isinstance(error, grpc.aio.AioRpcError)
    assert (error.code, error.message, str(error.code)) == (code, "no such thing", str(int(code)))
    assert error.code is code
    assert (error.code().value[0], error.details()) == (code, "no such thing")
    [detail] = error.details
    assert isinstance(detail, error_details_pb2.BadRequest)
    if code is Code.INVALID_ARGUMENT:
        assert error.violations == {"text": detail.field_violations[0].description}
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is type(error)
    assert (again.code, list(again.details)) == (code, [detail])


async def test_requests_that_fail_with_the_error_of_another_call_fail_the_call_with_it(stub, rpc):
    async def relayed():
        yield await stub.Unary(rpc.pb.EchoRequest(fail={"code": 5, "message": "not here"}), timeout=30)

    with pytest.raises(NotFound) as caught:
        await stub.ClientStream(relayed(), timeout=30)
    assert caught.value.details() == "not here"
    assert caught.value.details == ()


async def test_messages_before_an_error_arrive(stub, rpc):
    call = stub.ServerStream(rpc.pb.EchoRequest(count=3, fail={"code": 9, "message": "enough"}), timeout=30)
    assert [(await call.read()).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(grpc.aio.AioRpcError, match="enough"):
        await call.read()


async def test_unimplemented(stub, rpc, echo, dial):
    from mesh.rpc.client.channel import Channel

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Channel(stub.target).unary_unary("/no.Such/Method")(b"", timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_deadline_of_the_call(stub, echo, rpc):
    timeout = 0.1
    while not echo.servicer.calls:  # the deadline may pass before the server has received the call
        timeout *= 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Unary(rpc.pb.EchoRequest(sleep_ms=20_000), timeout=timeout)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await echo.servicer.cancelled.wait()


async def test_deadline_of_a_stream(stub, echo, rpc):
    timeout = 0.15
    while not echo.servicer.calls:  # as above
        timeout *= 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerStream(rpc.pb.EchoRequest(sleep_ms=100, count=1000), timeout=timeout):
                pass
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await echo.servicer.cancelled.wait()


async def test_deadline_that_has_passed(stub, echo, rpc):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(rpc.pb.EchoRequest(), timeout=-1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert echo.servicer.calls == 0


async def test_deadline_travels(stub, rpc):
    seen = (await stub.Unary(rpc.pb.EchoRequest(), timeout=30)).remaining.ToTimedelta().total_seconds()
    assert 28 < seen <= 30.1
    assert not (await stub.Unary(rpc.pb.EchoRequest())).HasField("remaining")


async def test_deadline_of_the_contract(stub, rpc):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Slow(rpc.pb.EchoRequest(sleep_ms=20_000), timeout=10)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_deadline_of_the_call_being_answered(stub, rpc):
    parent = Call(None, Metadata(), asyncio.get_running_loop().time() + 10)
    token = current.set(parent)
    try:
        answers = [await stub.Unary(rpc.pb.EchoRequest(), timeout=limit) for limit in (None, 3600)]
    finally:
        current.reset(token)
    for answer in answers:
        assert 8 < answer.remaining.ToTimedelta().total_seconds() <= 10.1


async def test_cancelling_the_task_cancels_the_call(stub, echo, rpc):
    async def wait():
        await stub.Unary(rpc.pb.EchoRequest(sleep_ms=20_000), timeout=30)

    task = asyncio.create_task(wait())
    await echo.servicer.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await echo.servicer.cancelled.wait()


async def test_cancelling_the_call_leaves_its_task_alone(stub, echo, rpc):
    call = stub.Unary(rpc.pb.EchoRequest(sleep_ms=20_000), timeout=30)

    async def wait():
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0)
        return asyncio.current_task().cancelling()

    task = asyncio.create_task(wait())
    await echo.servicer.arrived.wait()
    assert call.cancel()
    assert await task == 0
    assert not call.cancel()
    assert call.cancelled()
    assert call.done()
    assert await call.code() == grpc.StatusCode.CANCELLED
    await echo.servicer.cancelled.wait()


async def test_cancelling_a_stream(stub, echo, rpc):
    call = stub.ServerStream(rpc.pb.EchoRequest(sleep_ms=50, count=1000), timeout=30)
    await call.read()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    await echo.servicer.cancelled.wait()


async def test_a_stream_that_is_dropped_is_cancelled(stub, echo, rpc):
    async for _ in stub.ServerStream(rpc.pb.EchoRequest(sleep_ms=50, count=1000), timeout=30):
        break
    gc.collect()
    await echo.servicer.cancelled.wait()


async def test_an_error_in_the_request_iterator_reaches_the_caller(stub, echo, rpc):
    async def broken():
        yield rpc.pb.EchoRequest()
        await echo.servicer.arrived.wait()  # the function is not called if the call is reset before it starts
        raise LookupError("in the caller's own code")

    with pytest.raises(LookupError):
        await stub.ClientStream(broken(), timeout=30)
    await echo.servicer.idle.wait()
    echo.servicer.arrived.clear()
    with pytest.raises(LookupError):
        async for _ in stub.Bidi(broken(), timeout=30):
            pass
    await echo.servicer.idle.wait()


@pytest.mark.parametrize("source", ["async", "plain"])
@pytest.mark.parametrize("how", ["exit", "interrupt", "generator exit", "panic", "raises a cancellation"])
async def test_whatever_ends_the_request_iterator_reaches_the_caller(stub, rpc, how, source):
    async def requests():
        yield rpc.pb.EchoRequest(text="one")
        ways.end(how)

    def plain_requests():
        yield rpc.pb.EchoRequest(text="one")
        ways.end(how)

    for method in (stub.ClientStream, stub.Bidi):
        call = method(requests() if source == "async" else plain_requests(), timeout=20)
        with pytest.raises(EscapedError):
            if method is stub.Bidi:
                while await call.read() is not EOF:
                    pass
            else:
                await call


@pytest.mark.parametrize("how", ["cancelled task", "cancelled future", "cancels itself", "is cancelled by a task"])
async def test_a_cancellation_in_the_request_iterator_is_none_of_the_call(stub, rpc, how):
    async def requests():
        yield rpc.pb.EchoRequest(text="one")
        await ways.CANCELLATIONS[how]()

    call = stub.ClientStream(requests(), timeout=20)
    with pytest.raises(OwnCancellationError):
        await call
    assert not call.cancelled()


async def test_gzip(stub, echo, rpc):
    request = rpc.pb.EchoRequest(payload=b"a" * 100_000)
    answer = await stub.Unary(request, compression=grpc.Compression.Gzip, timeout=30)
    assert answer.payload == request.payload
    call = stub.Bidi(iter([request] * 3), compression=grpc.Compression.Gzip, timeout=30)
    assert [len(answer.payload) async for answer in call] == [100_000] * 3


async def test_gzip_answers(serve, dial, rpc):
    echo = await serve(options=[("grpc.default_compression_algorithm", 2)])
    stub = dial(echo.address)
    assert (await stub.Unary(rpc.pb.EchoRequest(answer_bytes=100_000), timeout=30)).payload == bytes(100_000)
    call = stub.ServerStream(rpc.pb.EchoRequest(answer_bytes=100_000, count=5), timeout=30)
    assert [len(answer.payload) async for answer in call] == [100_000] * 5


async def test_large_messages(echo, dial, rpc):
    stub = dial(echo.address, max_message=32 * MB)
    payload = bytes(range(256)) * (20 * MB // 256)
    assert (await stub.Unary(rpc.pb.EchoRequest(payload=payload), timeout=30)).payload == payload
    call = stub.Bidi(iter([rpc.pb.EchoRequest(payload=payload)] * 2), timeout=30)
    assert [answer.payload == payload async for answer in call] == [True, True]


async def test_a_slow_reader_holds_the_server_back(stub, echo, rpc, request, transport):
    if transport == "grpcio" and "sidecar" in request.node.callspec.id:
        pytest.skip(
            "grpcio puts all calls on one connection, and h2corn keeps 2 MiB of answers for each (docs/servers.md)"
        )
    call = stub.ServerStream(rpc.pb.EchoRequest(answer_bytes=MB, count=64), timeout=30)
    first = await call.read()
    assert len(first.payload) == MB
    others = [await stub.Unary(rpc.pb.EchoRequest(text="meanwhile"), timeout=30) for _ in range(20)]
    assert len(others) == 20
    count = 1
    while await call.read() is not EOF:
        count += 1
    assert count == 64


@pytest.mark.parametrize("kind", ["Unary", "ServerStream"])
async def test_a_message_beyond_the_limit(echo, dial, rpc, kind):
    stub = dial(echo.address, max_message=10_000)
    call = getattr(stub, kind)(rpc.pb.EchoRequest(answer_bytes=20_000, count=3), timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if kind == "Unary" else call.read())
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Unary(rpc.pb.EchoRequest(text="next"), timeout=30)).text == "next"


async def test_five_hundred_at_once(stub, rpc):
    calls = [stub.Unary(rpc.pb.EchoRequest(text=str(index), sleep_ms=20), timeout=20) for index in range(500)]
    assert [answer.text for answer in await asyncio.gather(*calls)] == [str(index) for index in range(500)]


async def test_the_servers_limit_of_streams(serve, dial, rpc, transport):
    if transport == "grpcio":
        pytest.skip("grpcio's own client overruns the limit at times and reports the REFUSED_STREAM that it gets")
    echo = await serve(options=[("grpc.max_concurrent_streams", 4)])
    stub = dial(echo.address)
    await stub.Unary(rpc.pb.EchoRequest(), timeout=30)
    most = 0

    async def call(index):
        nonlocal most
        answer = await stub.Unary(rpc.pb.EchoRequest(text=str(index), sleep_ms=10), timeout=20)
        most = max(most, echo.servicer.active)
        return answer.text

    assert await asyncio.gather(*map(call, range(60))) == [str(index) for index in range(60)]
    assert most <= 4


async def test_refused_connections_fail_fast_and_say_where(dial, rpc, unused_port):
    stub = dial(f"127.0.0.1:{unused_port}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(rpc.pb.EchoRequest(), timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert f"127.0.0.1:{unused_port}" in caught.value.debug_error_string()
    assert "refused" in caught.value.debug_error_string().lower()


async def test_wait_for_ready_waits_for_the_server(serve, dial, rpc, unused_port):
    stub = dial(f"127.0.0.1:{unused_port}")
    call = asyncio.ensure_future(stub.Unary(rpc.pb.EchoRequest(text="x"), wait_for_ready=True, timeout=20))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Unary(rpc.pb.EchoRequest(), timeout=20)
    await serve(port=unused_port)
    assert (await call).text == "x"


async def test_wait_for_ready_ends_at_the_deadline(dial, rpc, unused_port):
    stub = dial(f"127.0.0.1:{unused_port}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(rpc.pb.EchoRequest(), wait_for_ready=True, timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_stopped_server_is_found_again(serve, dial, rpc):
    first = await serve()
    stub = dial(first.address)
    await stub.Unary(rpc.pb.EchoRequest(), timeout=30)
    under_way = [asyncio.ensure_future(stub.Unary(rpc.pb.EchoRequest(sleep_ms=20_000), timeout=30)) for _ in range(3)]
    while first.servicer.active < 3:
        first.servicer.arrived.clear()
        await first.servicer.arrived.wait()
    await first.server.stop(0)
    for error in await asyncio.gather(*under_way, return_exceptions=True):
        assert error.code() == grpc.StatusCode.UNAVAILABLE
    await serve(port=first.port)
    assert (await stub.Unary(rpc.pb.EchoRequest(text="again"), wait_for_ready=True, timeout=20)).text == "again"


async def test_goaway_under_load_loses_no_call(serve, dial, rpc):
    echo = await serve(options=[("grpc.max_connection_age_ms", 200), ("grpc.max_connection_age_grace_ms", 5000)])
    stub = dial(echo.address)
    loop = asyncio.get_running_loop()
    until = loop.time() + 1.5

    async def load():
        count = 0
        while loop.time() < until:
            await stub.Unary(rpc.pb.EchoRequest(sleep_ms=count % 5), timeout=20)
            count += 1
        return count

    assert sum(await asyncio.gather(*[load() for _ in range(8)])) == echo.servicer.calls


async def test_one_of_two_servers_goes_away(serve, dial, rpc):
    first, second = await serve(), await serve()
    stub = dial(first.address, second.address)
    await asyncio.gather(*[stub.Unary(rpc.pb.EchoRequest(), wait_for_ready=True, timeout=10) for _ in range(50)])
    await first.server.stop(None)
    await stub.Idempotent(rpc.pb.EchoRequest(), timeout=10)  # in whatever way this client detects it
    before = second.servicer.calls
    for _ in range(50):
        await stub.Unary(rpc.pb.EchoRequest(), timeout=10)
    assert second.servicer.calls == before + 50
    third = await serve(port=first.port)
    while not third.servicer.calls:
        await stub.Unary(rpc.pb.EchoRequest(), timeout=10)


async def test_calls_are_balanced_one_by_one(serve, dial, rpc):
    servers = [await serve(), await serve()]
    stub = dial(*[server.address for server in servers])
    await asyncio.gather(*[stub.Unary(rpc.pb.EchoRequest(), wait_for_ready=True, timeout=10) for _ in range(20)])
    await asyncio.gather(*[stub.Unary(rpc.pb.EchoRequest(sleep_ms=20), timeout=10) for _ in range(200)])
    assert min(server.servicer.calls for server in servers) > 50


async def test_a_name_is_resolved(serve, dial, rpc):
    echo = await serve()
    stub = dial(f"localhost:{echo.port}")
    assert (await stub.Unary(rpc.pb.EchoRequest(text="by name"), wait_for_ready=True, timeout=30)).text == "by name"


async def test_a_name_that_is_none(dial, rpc):
    stub = dial("no-such-name.invalid:1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(rpc.pb.EchoRequest(), timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "no-such-name.invalid" in caught.value.debug_error_string()


async def test_ipv6(serve, dial, rpc):
    try:
        echo = await serve(host="[::1]")
    except RuntimeError:
        pytest.skip("no IPv6 on this machine")
    assert (await dial(echo.address).Unary(rpc.pb.EchoRequest(text="six"), timeout=10)).text == "six"


async def test_retries_of_methods_that_allow_it(stub, echo, rpc):
    echo.servicer.refuse = 2
    assert (await stub.Idempotent(rpc.pb.EchoRequest(text="third time"), timeout=10)).text == "third time"
    assert echo.servicer.calls == 3
    echo.servicer.refuse = 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(rpc.pb.EchoRequest(), timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert echo.servicer.calls == 4


async def test_retries_end(stub, echo, rpc):
    echo.servicer.refuse = 100
    with pytest.raises(grpc.aio.AioRpcError, match="not now"):
        await stub.Idempotent(rpc.pb.EchoRequest(), timeout=10)
    assert echo.servicer.calls == 4


async def test_other_codes_are_not_retried(stub, echo, rpc):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Idempotent(rpc.pb.EchoRequest(fail={"code": Code.ABORTED}), timeout=10)
    assert caught.value.code() == grpc.StatusCode.ABORTED
    assert echo.servicer.calls == 1


async def test_a_server_that_restarts_is_waited_for(serve, dial, rpc):
    echo = await serve()
    stub = dial(echo.address)
    await stub.Idempotent(rpc.pb.EchoRequest(), timeout=10)
    await echo.server.stop(None)
    calls = [asyncio.ensure_future(stub.Idempotent(rpc.pb.EchoRequest(text="back"), timeout=30)) for _ in range(3)]
    done, _ = await asyncio.wait(calls, timeout=0.5)
    assert not done
    again = await serve(port=echo.port)
    assert [answer.text for answer in await asyncio.gather(*calls)] == ["back"] * 3
    assert again.servicer.calls == 3


@pytest.mark.parametrize("end", ["patience", "deadline", "close"])
async def test_the_wait_for_a_server_that_restarts_ends(serve, dial, rpc, monkeypatch, end):
    if end == "patience":
        monkeypatch.setattr(connection_pool, "RECONNECT_TIMEOUT", 0.5)
        monkeypatch.setattr(grpcio_transport, "RECONNECT_TIMEOUT", 0.5)
    echo = await serve()
    stub = dial(echo.address)
    await stub.Idempotent(rpc.pb.EchoRequest(), timeout=10)
    await echo.server.stop(None)
    call = asyncio.ensure_future(stub.Idempotent(rpc.pb.EchoRequest(), timeout=0.5 if end == "deadline" else 60))
    if end == "close":
        await asyncio.wait([call], timeout=0.2)
        await stub.target.close()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 8)
    assert caught.value.code() == grpc.StatusCode[("UNAVAILABLE", "DEADLINE_EXCEEDED")[end == "deadline"]]


class Foreign(Call):
    """A call that no stub made: it has the interface of ``Call`` and nothing else."""

    def __init__(self, method, *messages):
        super().__init__(method, Metadata([("x-echo-a", "1")]))
        self.messages = list(messages)
        self.answers = []

    async def receive(self):
        return self.messages.pop(0) if self.messages else None

    async def send(self, message):
        self.headers_sent = True
        self.answers.append(message)

    async def send_headers(self):
        self.headers_sent = True


@pytest.mark.parametrize("kind", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_a_target_answers_any_call(stub, rpc, contract, kind):
    count = 2 if kind in ("ClientStream", "Bidi") else 1
    messages = [rpc.pb.EchoRequest(text="x", count=1).SerializeToString()] * count
    call = Foreign(contract.method(f"/conformance.v1.Echo/{kind}"), *messages)
    await stub.target(call)
    assert len(call.answers) == (2 if kind == "Bidi" else 1)
    assert rpc.pb.EchoResponse.FromString(call.answers[0]).text == ("x,x" if kind == "ClientStream" else "x")
    assert call.headers == [(b"x-echo-a", b"1")]
    assert call.trailers == [(b"x-echo-a-trailer", b"1")]


async def test_closing_fails_what_runs(stub, echo, rpc):
    call = asyncio.ensure_future(stub.Unary(rpc.pb.EchoRequest(sleep_ms=20_000), timeout=30))
    await echo.servicer.arrived.wait()
    await stub.target.close()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call


async def test_outer_spaces_that_a_server_sets_do_not_fail_grpcio(transport, serve, dial, rpc):
    """grpcio accepts outer spaces in values; libnghttp2 ends the stream (RFC 9113, 8.2.1)."""
    server = await serve()
    server.servicer.trailing = [("x-a", " b "), ("x-b-bin", b"\0")]
    call = dial(server.address).Unary(rpc.pb.EchoRequest())
    if transport == "grpcio":
        await call
        assert list(await call.trailing_metadata()) == [("x-a", "b"), ("x-b-bin", b"\0")]
    else:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_servers_empty_status_message_stays_empty(serve, dial, rpc):
    call = dial((await serve()).address).Unary(rpc.pb.EchoRequest(fail=rpc.pb.Failure(code=5)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "")
