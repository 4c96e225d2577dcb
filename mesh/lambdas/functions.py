"""The handlers of one Lambda function: what ``mesh.function.Functions`` is for a module of functions.

The module is imported once in each process, after its environment is set, with its own folder on the path as on AWS.
``async def`` runs on the event loop, ``def`` in a thread. A handler that takes longer than the function may is answered
for as Lambda does; its thread cannot be stopped, and ends when it ends.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from google.protobuf.message import DecodeError
from opentelemetry import trace

from mesh.errors import InvalidArgument
from mesh.faults import Fault, Faults
from mesh.function import Functions, Hook, load_module
from mesh.jsoncodec import Codecs
from mesh.lambdas import event as events
from mesh.lambdas import failure, value
from mesh.lambdas.context import CLIENT_CONTEXT, ClientContext, Instance, LambdaContext
from mesh.lambdas.descriptor import INVOKE, on_schedule

if TYPE_CHECKING:
    from mesh.call import Call, Handler
    from mesh.context import Service as ServiceContext
    from mesh.contract import Method, Service
    from mesh.lambdas.config import Function
    from mesh.threads import Threads

__all__ = ["LambdaFunctions", "functions_of", "install"]

_EDGE = "edge"
"""The caller behind which everyone outside stands (``mesh.auth.EDGE``)."""


def functions_of(module: str, function: Function | None, services: Sequence[Service]) -> Functions | LambdaFunctions:
    """Return the functions of an entry of mesh.toml, whichever kind it is of.

    Args:
        module: The module that it names.
        function: The Lambda function that it is, or None.
        services: The services of the contract that it serves.

    Raises:
        Faults: Its module is not right.
    """
    return Functions(module, services) if function is None else LambdaFunctions(function, services)


def install(function: Function) -> Instance:
    """Make this process, and those that it starts, an execution environment: its variables and its path."""
    root = _root(function.module)
    instance = Instance(function, root)
    os.environ.update(instance.environment)
    os.environ.update(function.environment)
    if root not in sys.path:
        sys.path.append(root)
    return instance


class LambdaFunctions:
    """A Lambda function, hosted in this process.

    Args:
        function: The function; its module is imported here.
        services: Its service in the contract.

    Raises:
        Faults: The module cannot be imported, or has no such handler.
    """

    startup: Hook | None = None
    shutdown: Hook | None = None

    def __init__(self, function: Function, services: Sequence[Service]) -> None:
        self._function = function
        self._services = services
        self._instance = install(function)
        self._handler = _found(function)
        self._async = any(
            map(inspect.iscoroutinefunction, (self._handler, getattr(self._handler, "__call__", None)))  # noqa: B004
        )

    def handlers(self, service: ServiceContext, threads: Threads) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method.

        Args:
            service: Whose log the failures go to.
            threads: Where a ``def`` handler runs.
        """
        run = self._run(threads)
        return {
            method.path: (method, self._answering(method, service, run))
            for one in self._services
            for method in one.methods.values()
        }

    def _answering(self, method: Method, service: ServiceContext, run: _Run) -> Handler:
        read = _reader(method)
        invoked = method.name == INVOKE
        instance, log, largest = self._instance, service.log, self._function.largest

        async def answer(call: Call) -> None:
            data = await call.receive_one()
            outside = call.caller == _EDGE
            trusted = call.caller is not None and not outside
            event = events.received(read(data), call.identity, trusted=trusted)
            request_id = str(uuid4())
            trace.get_current_span().set_attribute("faas.invocation_id", request_id)
            started = time.monotonic()
            until = started + instance.timeout
            left = until if call.deadline is None else min(until, call.deadline)
            client = call.metadata.get(CLIENT_CONTEXT)
            context = LambdaContext(instance, request_id, left, ClientContext.of(client) if client else None)
            try:
                async with asyncio.timeout(instance.timeout):
                    result, error = await run(event, context)
            except TimeoutError:
                log.error("%s Task timed out after %.2f seconds", request_id, instance.timeout)  # noqa: TRY400 - it is no exception of the handler's
                raise failure.timed_out(instance.timeout, request_id, outside=outside) from None
            kind, text = "", ""
            if error is not None:
                kind, text = _told(error, request_id)
            elif invoked:
                try:
                    reply = _reply(result, largest)
                except _UnfitError as unfit:
                    error, kind, text = unfit, unfit.kind, str(unfit)
                    error.__traceback__ = None
            if error is not None:
                log.error("%s the handler failed: %s: %s", request_id, kind, text, exc_info=error)
                raise failure.failed(error, kind, text, request_id, outside=outside) from _cause(error)
            await call.send(reply if invoked else b"")

        return answer

    def _run(self, threads: Threads) -> _Run:
        """Return what calls the handler: → (result, None) or (None, what it raised)."""
        handler = self._handler

        def call(event: Any, context: LambdaContext) -> tuple[Any, BaseException | None]:
            try:
                return handler(event, context), None
            except BaseException as error:  # noqa: BLE001 - SystemExit would end the whole process
                return None, _in_handler(error)

        async def threaded(event: Any, context: LambdaContext) -> tuple[Any, BaseException | None]:
            found: tuple[Any, BaseException | None] = await threads.run(lambda _: call(event, context))
            return found

        async def awaited(event: Any, context: LambdaContext) -> tuple[Any, BaseException | None]:
            try:
                return await handler(event, context), None
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - as above
                return None, _in_handler(error)

        return awaited if self._async else threaded


_Run = Callable[[Any, LambdaContext], Any]


def _root(module: str) -> str:
    """Return the folder of the module's file: on AWS, the folder that the function's code was unpacked into."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else str(Path.cwd())


def _found(function: Function) -> Callable[[Any, LambdaContext], Any]:
    found: Any = load_module(function.module)
    place = getattr(found, "__file__", None) or function.module
    for name in function.handler.split("."):
        found = getattr(found, name, None)
    if found is None:
        text = f"there is no handler {function.handler!r}; write def {function.handler}(event, context)"
        raise Faults([Fault(place, text)])
    try:
        inspect.signature(found).bind(None, None)
    except TypeError:
        text = f"{function.handler!r} is no handler; write def {function.handler}(event, context)"
        raise Faults([Fault(place, text)]) from None
    except ValueError:  # a builtin without a signature
        pass
    return found  # type: ignore[no-any-return]


def _reader(method: Method) -> Callable[[bytes], Any]:
    """Return what makes the event of a request message."""
    kind: Any = method.input
    name = kind.DESCRIPTOR.full_name
    dump = Codecs().of(kind).dump

    def read(data: bytes) -> Any:
        if method.name == INVOKE:
            return value.decode(data)
        message = kind.FromString(data)
        if method.name == on_schedule:
            tick = dump(message)
            return events.scheduled(tick.get("schedule", ""), tick.get("time", _now()))
        return events.published(name, _now(), dump(message))

    def checked(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            raise InvalidArgument(f"the request is not a {name} message") from None

    return checked


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _in_handler(error: BaseException) -> BaseException:
    """Return the error with a traceback that begins in the handler."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next
    return error


class _UnfitError(ValueError):
    """The result cannot be a reply; ``kind`` is Lambda's ``errorType``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _reply(result: Any, largest: int) -> bytes:
    """Return the message of a result, which whoever asked for it can take.

    Raises:
        _UnfitError: It has no JSON form, or is too large.
    """
    try:
        reply = value.encode(result)
    except value.CannotMarshal as error:
        raise _UnfitError(failure.MARSHAL, f"Unable to marshal response: {error}") from None
    if len(reply) > largest:
        text = f"Response payload size ({len(reply)} bytes) exceeded maximum allowed payload size ({largest} bytes)."
        raise _UnfitError(failure.TOO_LARGE, text)
    return reply


def _told(error: BaseException, request_id: str) -> tuple[str, str]:
    """Return ``errorType`` and ``errorMessage``."""
    if isinstance(error, SystemExit):
        return failure.EXITED, f"RequestId: {request_id} Error: Runtime exited: {error.code}"
    return type(error).__name__, str(error)


def _cause(error: BaseException) -> Exception:
    """Return what the span records: asyncio lets no ``SystemExit`` travel as a cause of another."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
