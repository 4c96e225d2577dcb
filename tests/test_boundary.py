"""Exception boundary: the origin of cancellations, and only an ``Exception`` leaves it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mesh.boundary import (
    EscapedError,
    OwnCancellationError,
    boundary,
    cancel_task,
    cancelled_by_mesh,
    contain,
    record_cancellation,
    uncancel_task,
)
from mesh.call import Call, Metadata
from mesh.chaos.endings.ways import CANCELLATIONS, Panic
from mesh.errors import DeadlineExceeded, NotFound
from mesh.layers.deadline import deadline


def current() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def call(timeout: float | None = None) -> Call:
    return Call(SimpleNamespace(path="/t.v1.S/Do", timeout=timeout), Metadata())


async def throw(error: BaseException) -> None:
    raise error


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("error", [ValueError(), NotFound("x"), StopAsyncIteration(), ExceptionGroup("g", [OSError()])])
async def test_an_exception_is_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await contain(throw(error))
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Panic("no"), BaseExceptionGroup("g", [Panic("no")])]
)
async def test_what_is_no_exception_becomes_one(error: BaseException) -> None:
    with pytest.raises(EscapedError, match=f"{type(error).__name__} was raised, which is no Exception") as caught:
        await contain(throw(error))
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, OwnCancellationError)


@pytest.mark.parametrize("how", CANCELLATIONS)
async def test_a_cancellation_of_its_own(how: str) -> None:
    with pytest.raises(OwnCancellationError) as caught:
        await contain(CANCELLATIONS[how]())
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert current().cancelling() == 0
    await asyncio.sleep(0)  # and nothing of it is left


@pytest.mark.parametrize("delay", [0, 0.01])
async def test_one_that_the_mesh_asks_for(delay: float) -> None:
    running = asyncio.ensure_future(contain(forever()))
    await asyncio.sleep(delay)
    cancel_task(running)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled_by_mesh(running)


@pytest.mark.parametrize("first", ["own", "the mesh's"])
async def test_of_both_the_meshs_wins(first: str) -> None:
    async def function() -> None:
        if first == "own":
            current().cancel()
            with suppress(asyncio.CancelledError):
                await forever()
            ready.set()
        else:
            ready.set()
            with suppress(asyncio.CancelledError):
                await forever()
            current().cancel()
        await forever()

    ready = asyncio.Event()
    running = asyncio.ensure_future(contain(function()))
    await ready.wait()
    cancel_task(running)
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_one_that_comes_as_the_function_ends_is_not_lost() -> None:
    """The mesh asks for it in the turn of the loop in which the function's own, left behind, is taken back."""

    async def function() -> str:
        task = current()
        task.cancel()
        asyncio.get_running_loop().call_soon(cancel_task, task)
        return "done"

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(contain(function()))


async def test_what_the_mesh_takes_back_is_over() -> None:
    with suppress(asyncio.CancelledError):
        cancel_task(current())
        await asyncio.sleep(0)
    uncancel_task(current())
    with pytest.raises(OwnCancellationError):
        await contain(throw(asyncio.CancelledError()))


async def test_a_deadline_after_a_cancellation_that_the_function_outlived() -> None:
    async def function(_: Call) -> None:
        current().cancel()
        with suppress(asyncio.CancelledError):
            await forever()
        await forever()

    with pytest.raises(DeadlineExceeded):
        await deadline(call(0.02), lambda one: boundary(one, function))
    assert (current().cancelling(), cancelled_by_mesh(current())) == (0, False)


async def test_a_cancellation_of_its_own_is_no_deadline_of_the_mesh() -> None:
    async def function(_: Call) -> None:
        await CANCELLATIONS["cancelled task"]()

    with pytest.raises(OwnCancellationError):
        await deadline(call(30), lambda one: boundary(one, function))


async def _timeout() -> None:
    async with asyncio.timeout(0.01):
        await forever()


async def _group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(throw(OSError("of a child")))
        group.create_task(forever())


@pytest.mark.parametrize(("scope", "error"), [(_timeout, TimeoutError), (_group, ExceptionGroup)])
async def test_scopes_of_the_function_cancel_its_task_and_take_it_back(
    scope: Callable[[], Awaitable[None]], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await contain(scope())
    assert current().cancelling() == 0


@pytest.mark.parametrize("gone", [True, False])
async def test_a_server_that_cancels_without_a_word_is_asked(*, gone: bool) -> None:
    class Asked(Call):
        async def caller_disconnected(self) -> bool:
            return gone

    async def function(_: Call) -> None:
        begun.set()
        await forever()

    begun = asyncio.Event()
    running = asyncio.ensure_future(contain_of(Asked(call().method, Metadata()), function))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError if gone else OwnCancellationError):
        await running


async def contain_of(one: Call, function: Callable[[Call], Awaitable[None]]) -> None:
    await boundary(one, function)  # type: ignore[arg-type]


async def test_one_that_is_raised_by_hand_for_the_mesh() -> None:
    async def function() -> None:
        record_cancellation(current())
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(contain(function()))


async def test_a_coroutine_that_is_closed_closes_quietly() -> None:
    running: list[Coroutine[object, object, None]] = []

    async def begin() -> None:
        running.append(contain(pause()))
        running[0].send(None)

    await asyncio.create_task(begin())
    running[0].close()  # raises what comes out of it


async def pause() -> None:
    await asyncio.sleep(0)
