"""Chain, deadline, recover and concurrency limit."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc.aio
import pytest

from mesh.boundary import cancel_task
from mesh.call import Call, Handler, Metadata, chain
from mesh.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    Internal,
    NotFound,
    RemoteError,
    ResourceExhausted,
    StatusError,
    Unavailable,
)
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.rpc.client.call_error import CallError, call_error


class Panic(BaseException):
    """Stands for what Rust extensions raise."""


def call(timeout: float | None = None, until: float | None = None) -> Call:
    unary = {"client_streaming": False, "server_streaming": False, "no_time_limit": False}
    return Call(SimpleNamespace(path="/t.v1.S/Do", timeout=timeout, **unary), Metadata(), until)


def failed_call(code: Code, message: str = "") -> CallError:
    return call_error(StatusError.of(code, message), grpc.aio.Metadata(), grpc.aio.Metadata())


async def test_the_first_layer_is_the_outermost() -> None:
    seen: list[str] = []

    def layer(name: str):
        async def run(call: Call, next: Handler) -> None:
            seen.append(f"{name} in")
            await next(call)
            seen.append(f"{name} out")

        return run

    async def handler(call: Call) -> None:
        seen.append("handler")

    await chain(layer("a"), layer("b"), handler)(call())
    assert seen == ["a in", "b in", "handler", "b out", "a out"]


class TestDeadline:
    async def test_the_methods_timeout_caps_the_callers(self) -> None:
        now = asyncio.get_running_loop().time()
        seen = []

        async def handler(call: Call) -> None:
            seen.append(call.deadline)

        await deadline(call(timeout=5), handler)
        await deadline(call(timeout=5, until=now + 60), handler)
        await deadline(call(timeout=5, until=now + 1), handler)
        await deadline(call(), handler)
        assert seen[0] == pytest.approx(now + 5, abs=0.5)
        assert seen[1] == pytest.approx(now + 5, abs=0.5)
        assert seen[2] == now + 1
        assert seen[3] is None

    async def test_it_cancels_what_runs_and_says_so(self) -> None:
        cancelled = asyncio.Event()

        async def handler(call: Call) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        with pytest.raises(DeadlineExceeded):
            await deadline(call(timeout=0.01), handler)
        assert cancelled.is_set()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_a_deadline_that_has_passed_does_not_begin(self) -> None:
        async def handler(call: Call) -> None:
            raise AssertionError("must not run")

        with pytest.raises(DeadlineExceeded):
            await deadline(call(until=asyncio.get_running_loop().time() - 1), handler)

    async def test_a_cancellation_from_elsewhere_passes(self) -> None:
        started = asyncio.Event()

        async def handler(call: Call) -> None:
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(deadline(call(timeout=60), handler))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_function_that_swallows_the_cancellation_leaves_none_behind(self) -> None:
        async def handler(call: Call) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise NotFound("late") from None

        with pytest.raises(NotFound):
            await deadline(call(timeout=0.01), handler)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    async def test_an_error_that_the_function_makes_of_it_is_the_deadline_too(self) -> None:
        async def handler(call: Call) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise OSError("the connection was cancelled") from None

        with pytest.raises(DeadlineExceeded) as caught:
            await deadline(call(timeout=0.01), handler)
        assert isinstance(caught.value.__cause__, OSError)

    async def test_the_status_of_another_call_is_no_status_of_this_one(self) -> None:
        async def handler(call: Call) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise failed_call(Code.NOT_FOUND) from None

        with pytest.raises(DeadlineExceeded):
            await deadline(call(timeout=0.01), handler)

    async def test_an_error_before_it_is_what_it_is(self) -> None:
        async def handler(call: Call) -> None:
            raise OSError

        with pytest.raises(OSError):
            await deadline(call(timeout=30), handler)


class TestRecover:
    async def answer(self, error: BaseException) -> BaseException:
        async def handler(call: Call) -> None:
            raise error

        with pytest.raises(BaseException) as caught:
            await recover(call(), handler)
        return caught.value

    async def test_a_status_passes_as_it_is(self) -> None:
        error = NotFound("no such user")
        assert await self.answer(error) is error

    async def test_a_bug_is_internal_and_its_text_stays_inside(self, caplog: pytest.LogCaptureFixture) -> None:
        found = await self.answer(ValueError("password=hunter2"))
        assert isinstance(found, Internal)
        assert "hunter2" not in str(found)
        assert "hunter2" in caplog.text

    @pytest.mark.parametrize(
        ("code", "expected"),
        [(Code.UNAVAILABLE, Code.UNAVAILABLE), (Code.NOT_FOUND, Code.INTERNAL), (Code.INTERNAL, Code.INTERNAL)],
    )
    async def test_an_onward_failure_passes_only_if_it_means_not_now(
        self, code: Code, expected: Code, caplog: pytest.LogCaptureFixture
    ) -> None:
        error = failed_call(code, "10.0.0.7:9101 refused")
        assert isinstance(error, type(StatusError.of(code)))
        found = await self.answer(error)
        assert isinstance(found, StatusError)
        assert not isinstance(found, RemoteError)
        assert found.code is expected
        assert "10.0.0.7" not in found.message
        [line] = caplog.records
        if code is Code.UNAVAILABLE:  # one line that says where
            assert (line.levelname, line.exc_info) == ("WARNING", None)
            assert "10.0.0.7:9101 refused" in line.getMessage()
        else:
            assert (line.levelname, bool(line.exc_info)) == ("ERROR", True)

    async def test_a_cancellation_that_the_mesh_asked_for_passes(self) -> None:
        async def handler(call: Call) -> None:
            await asyncio.Event().wait()

        running = asyncio.ensure_future(recover(call(), handler))
        await asyncio.sleep(0)
        cancel_task(running)
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_every_other_one_is_a_bug_of_a_layer(self, caplog: pytest.LogCaptureFixture) -> None:
        found = await self.answer(asyncio.CancelledError())
        assert isinstance(found, Cancelled)
        assert "CancelledError" in caplog.text

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Panic("secret")])
    async def test_what_is_no_exception_is_a_bug_too(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = await self.answer(error)
        assert isinstance(found, Internal)
        assert "secret" not in str(found)
        assert type(error).__name__ in caplog.text


class TestConcurrencyLimit:
    async def test_limit_queue_and_refusal(self) -> None:
        limit, go = ConcurrencyLimit(limit=1, queue=1), asyncio.Event()
        order: list[int] = []

        def handler(number: int) -> Handler:
            async def run(call: Call) -> None:
                order.append(number)
                await go.wait()

            return run

        first = asyncio.create_task(limit(call(), handler(1)))
        second = asyncio.create_task(limit(call(), handler(2)))
        await asyncio.sleep(0)
        assert (limit.in_flight, limit.waiting) == (1, 1)
        with pytest.raises(ResourceExhausted) as caught:
            await limit(call(), handler(3))
        assert caught.value.details
        go.set()
        await asyncio.gather(first, second)
        assert order == [1, 2]
        assert (limit.in_flight, limit.waiting) == (0, 0)

    async def test_a_cancelled_waiter_leaves_the_queue(self) -> None:
        limit, go = ConcurrencyLimit(limit=1, queue=2), asyncio.Event()

        async def handler(call: Call) -> None:
            await go.wait()

        first = asyncio.create_task(limit(call(), handler))
        second = asyncio.create_task(limit(call(), handler))
        third = asyncio.create_task(limit(call(), handler))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert limit.waiting == 1
        go.set()
        await asyncio.gather(first, third)
        assert (limit.in_flight, limit.waiting) == (0, 0)

    async def test_one_admitted_and_cancelled_in_one_turn_hands_its_place_on(self) -> None:
        limit, go = ConcurrencyLimit(limit=1, queue=2), asyncio.Event()

        async def handler(call: Call) -> None:
            await go.wait()

        first = asyncio.create_task(limit(call(), handler))
        second = asyncio.create_task(limit(call(), handler))
        third = asyncio.create_task(limit(call(), handler))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)  # admits the second...
        second.cancel()  # ...which is cancelled before it runs
        go.set()
        await asyncio.gather(second, third, return_exceptions=True)
        assert third.exception() is None
        assert (limit.in_flight, limit.waiting) == (0, 0)

    async def test_a_failing_call_gives_its_place_back(self) -> None:
        limit = ConcurrencyLimit(limit=1, queue=0)

        async def handler(call: Call) -> None:
            raise Unavailable("no")

        for _ in range(3):
            with pytest.raises(Unavailable):
                await limit(call(), handler)
        assert limit.in_flight == 0
