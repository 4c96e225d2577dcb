"""The handlers of one Lambda function: what ``mesh.function.Functions`` is for a module of functions.

The module is imported once in each process, after its environment is set, with its own folder on the path as on AWS.
``async def`` runs on the event loop, ``def`` in the main thread or, beside another call of the process, in a thread. A
handler that takes longer than the function may is answered for as Lambda does; its thread cannot be stopped, and ends
when it ends.

The module is imported in a context (``contextvars``) that calls in the main thread run in as well, so that what one
sets the next one finds, as in an execution environment of AWS. Other threads and ``async def`` handlers get a copy.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from opentelemetry import context as otel
from opentelemetry import trace

from mesh.boundary import EscapedError, boundary, contain, wrap_escaped
from mesh.call import chain, current
from mesh.context_variables import Inherited
from mesh.errors import InvalidArgument
from mesh.faults import Fault, Faults
from mesh.function import Functions, Hook, load_module, module_spec
from mesh.lambdas import handler_events as events
from mesh.lambdas import json_text, json_value, lambda_error
from mesh.lambdas.lambda_context import (
    CLIENT_CONTEXT,
    ClientContext,
    Instance,
    LambdaContext,
    identifier,
    requested,
    tag_logs,
)
from mesh.lambdas.service_descriptor import INVOKE, TICK
from mesh.layers.timer_wheel import TaskTimeout, timer_wheel
from mesh.message_methods import parser
from mesh.protojson.codec import Codecs
from mesh.text import text_of

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Metadata
    from mesh.config.lambda_function import LambdaFunction
    from mesh.context import Service as ServiceContext
    from mesh.contract.model import GrpcService, Method
    from mesh.threads import Block, Runs

__all__ = ["LambdaFunctions", "functions_of", "install"]

_OURS = frozenset({__file__, contain.__code__.co_filename})
"""The files of the frames above a handler's."""
_EDGE = "edge"
"""The caller behind which everyone outside stands (``mesh.auth.EDGE``)."""


def functions_of(
    module: str, function: LambdaFunction | None, services: Sequence[GrpcService]
) -> Functions | LambdaFunctions:
    """Return the functions of an entry of mesh.toml, whichever kind it is of.

    Args:
        module: The module that it names.
        function: The Lambda function that it is, or None.
        services: The services of the contract that it serves.

    Raises:
        Faults: Its module is not right.
    """
    return Functions(module, services) if function is None else LambdaFunctions(function, services)


def install(function: LambdaFunction) -> Instance:
    """Make this process, and those that it starts, an execution environment: its variables and its path."""
    root = _root(function.module)
    instance = Instance(function, root)
    os.environ.update(instance.environment)
    os.environ.update(function.environment)
    time.tzset()
    tag_logs()
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

    def __init__(self, function: LambdaFunction, services: Sequence[GrpcService]) -> None:
        self._function = function
        self._services = services
        self._instance = install(function)
        self._context = copy_context()
        self._handler = self._context.run(_found, function)
        self._async = any(
            map(inspect.iscoroutinefunction, (self._handler, getattr(self._handler, "__call__", None)))  # noqa: B004
        )

    @property
    def plain(self) -> bool:
        """Whether the handler is a ``def`` function, which no event loop can call."""
        return not self._async

    def handlers(self, service: ServiceContext, threads: Runs) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method.

        Args:
            service: Whose log the failures go to.
            threads: Where a ``def`` handler runs.
        """
        run = self._run(threads)
        return {
            method.path: (method, chain(boundary, self._answering(method, service, run)))
            for one in self._services
            for method in one.methods.values()
        }

    def _answering(self, method: Method, service: ServiceContext, run: _Run) -> Handler:
        read, from_text = self._reader(method), _checked(json_text.event_of, method)
        invoked = method.name == INVOKE
        instance, log, largest = self._instance, service.log, self._function.max_message_bytes

        async def answer(call: Call) -> None:
            data = await call.receive_one()
            outside = call.caller == _EDGE
            trusted = call.caller is not None and not outside
            as_text = invoked and call.metadata.wire(json_text.MARK[0]) == json_text.MARK[1]
            event = from_text(data) if as_text else read(data, call.metadata)
            event = events.received(event, call.identity, trusted=trusted)
            request_id = identifier()
            trace.get_current_span().set_attribute("faas.invocation_id", request_id)
            until = time.monotonic() + instance.timeout
            left = until if call.deadline is None else min(until, call.deadline)
            client = call.metadata.wire(CLIENT_CONTEXT)
            context = LambdaContext(instance, request_id, left, ClientContext.of(client) if client else None)
            said = requested.set(request_id)
            try:
                found = await _within(until, run(event, context))
            finally:
                requested.reset(said)
            if found is None:
                log.error("%s Task timed out after %.2f seconds", request_id, instance.timeout)
                raise lambda_error.timed_out(instance.timeout, request_id, outside=outside)
            result, error = found
            kind, why, reply = "", "", b""
            if error is not None:
                kind, why = _told(error, request_id)
            elif invoked:
                try:
                    reply = _reply(result, largest, as_text=as_text)
                except _UnfitError as unfit:
                    error, kind, why = unfit, unfit.kind, str(unfit)
                    error.__traceback__ = None
            if error is not None:
                log.error("%s the handler failed: %s: %s", request_id, kind, why, exc_info=error)
                raise lambda_error.failed(error, kind, why, request_id, outside=outside) from _cause(error)
            await call.send(reply)

        return answer

    def _reader(self, method: Method) -> Callable[[bytes, Metadata], Any]:
        """Return what makes the event of a request message."""
        if method.name == INVOKE:
            decode = _checked(json_value.decode, method)
            return lambda data, _: decode(data)
        kind: Any = method.input
        parse, dump, region = _checked(parser(kind), method), Codecs().of(kind).dump, self._function.region
        name = kind.DESCRIPTOR.full_name

        def read(data: bytes, metadata: Metadata) -> Any:
            message, origin = dump(parse(data)), events.origin(metadata, region)
            if name == TICK:
                return events.scheduled(message.get("schedule", ""), message.get("time", ""), origin)
            return events.published(name, message, origin)

        return read

    def _run(self, threads: Runs) -> _Run:
        """Return what calls the handler: → (result, None) or (None, what it raised)."""
        handler = self._handler
        inherited = Inherited()
        inherited.keep(self._context)

        def call(event: Any, context: LambdaContext) -> _Outcome:
            try:
                return handler(event, context), None
            except BaseException as error:  # noqa: BLE001 - it is answered in Lambda's shape
                return None, _in_handler(error)

        async def threaded(event: Any, context: LambdaContext) -> _Outcome:
            answered, traced = current.get(), otel.get_current()

            def work(_: Block) -> _Outcome:
                said, asked = current.set(answered), requested.set(context.aws_request_id)
                attached = otel.attach(traced)
                try:
                    return call(event, context)
                finally:
                    otel.detach(attached)
                    requested.reset(asked)
                    current.reset(said)

            found: _Outcome = await threads.run(work, self._context)
            return found

        async def awaited(event: Any, context: LambdaContext) -> _Outcome:
            inherited.enter()
            try:
                return await contain(handler(event, context)), None
            except EscapedError as error:
                return None, _in_handler(error.__cause__ or error)
            except Exception as error:  # noqa: BLE001 - it is answered in Lambda's shape
                return None, _in_handler(error)

        return awaited if self._async else threaded


_Outcome = tuple[Any, BaseException | None]
_Run = Callable[[Any, LambdaContext], Coroutine[Any, Any, _Outcome]]


def _root(module: str) -> str:
    """Return the folder of the module's file: on AWS, the folder that the function's code was unpacked into."""
    spec = module_spec(module)
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else str(Path.cwd())


def _found(function: LambdaFunction) -> Callable[[Any, LambdaContext], Any]:
    found: Any = load_module(function.module)
    place = getattr(found, "__file__", None) or function.module
    for name in function.handler.split("."):
        found = getattr(found, name, None)
    if found is None:
        text = f"there is no handler {function.handler!r}; write def {function.handler}(event, context)"
        raise Faults([Fault(place, text)])
    try:
        # A decorator may add arguments (metric_scope of aws-embedded-metrics): it is asked, and not what it wraps.
        inspect.signature(found, follow_wrapped=False).bind(None, None)
    except TypeError:
        text = f"{function.handler!r} is no handler; write def {function.handler}(event, context)"
        raise Faults([Fault(place, text)]) from None
    except ValueError:  # a builtin without a signature
        pass
    return found  # type: ignore[no-any-return]


def _checked(read: Callable[[bytes], Any], method: Method) -> Callable[[bytes], Any]:
    name = method.input.DESCRIPTOR.full_name

    def checked(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            raise InvalidArgument(f"the request is not a {name} message") from None

    return checked


async def _within(until: float, running: Coroutine[Any, Any, _Outcome]) -> _Outcome | None:
    """Return what an invocation comes to, or None if it did not in time.

    A coroutine is cancelled then, and may end as it likes: it has timed out.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a call is answered in a task
    timeout = TaskTimeout(task)
    slot = timer_wheel(task).add(until, timeout)
    try:
        outcome = await running
    except asyncio.CancelledError:
        if timeout.sole_cause:
            return None
        raise
    finally:
        slot.discard(timeout)
        timeout.uncancel()
    return None if timeout.expired else outcome


def _in_handler(error: BaseException) -> BaseException:
    """Return the error with a traceback that begins in the handler."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename in _OURS:
        found = found.tb_next
    return error.with_traceback(found)


class _UnfitError(ValueError):
    """The result cannot be a reply; ``kind`` is Lambda's ``errorType``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _reply(result: Any, largest: int, *, as_text: bool) -> bytes:
    """Return the message of a result, which whoever asked for it can take.

    Raises:
        _UnfitError: It has no JSON form, or is too large.
    """
    try:
        reply = json_value.pack(json_text.marshal(result)) if as_text else json_value.encode(result)
    except json_value.CannotMarshal as error:
        raise _UnfitError(lambda_error.MARSHAL, f"Unable to marshal response: {error}") from None
    if len(reply) > largest:
        why = f"Response payload size ({len(reply)} bytes) exceeded maximum allowed payload size ({largest} bytes)."
        raise _UnfitError(lambda_error.TOO_LARGE, why)
    return reply


def _told(error: BaseException, request_id: str) -> tuple[str, str]:
    """Return ``errorType`` and ``errorMessage``."""
    if isinstance(error, SystemExit):
        return lambda_error.EXITED, f"RequestId: {request_id} Error: Runtime exited: {error.code}"
    return type(error).__name__, text_of(error)


def _cause(error: BaseException) -> Exception:
    """Return what the span records."""
    return error if isinstance(error, Exception) else wrap_escaped(error)
