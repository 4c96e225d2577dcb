"""Handlers of a Lambda function: the counterpart of ``mesh.function.Functions`` for a module of functions.

The module is imported once in each process, after its environment variables are set, and with its folder on the import
path, as on AWS. An ``async def`` handler runs on the event loop. A ``def`` handler runs in the main thread, or in
another thread while the main thread has a call. A handler that exceeds the function's timeout gets Lambda's timeout
error as its response. Its thread cannot be stopped, and goes on until it ends.

The module is imported in a context (``contextvars``). Calls in the main thread run in the same context, so that values
last between invocations, as in an execution environment of AWS. Other threads and ``async def`` handlers get a copy.
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
from mesh.context_variables import InheritedContext
from mesh.errors import InvalidArgument
from mesh.faults import Fault, Faults
from mesh.function import Functions, Hook, load_module, module_spec
from mesh.lambdas import handler_events as events
from mesh.lambdas import json_text, json_value, lambda_error
from mesh.lambdas.lambda_context import (
    CLIENT_CONTEXT,
    ClientContext,
    ExecutionEnvironment,
    LambdaContext,
    current_request_id,
    new_request_id,
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
    from mesh.threads import Block, FunctionRunner

__all__ = ["LambdaFunctions", "functions_of", "install"]

_FRAMEWORK_FILES = frozenset({__file__, contain.__code__.co_filename})
"""Files of the frames above the handler's."""
_OUTSIDE = frozenset({"edge", "operator"})
"""Callers that make calls from outside the mesh (``mesh.auth.NO_SERVICES``)."""


def functions_of(
    module: str, function: LambdaFunction | None, services: Sequence[GrpcService]
) -> Functions | LambdaFunctions:
    """Return the functions of a service of mesh.toml: its functions of a module, or its Lambda function.

    Args:
        module: The service's module.
        function: The service's Lambda function, or None.
        services: The gRPC services that it hosts.

    Raises:
        Faults: The module is wrong.
    """
    return Functions(module, services) if function is None else LambdaFunctions(function, services)


def install(function: LambdaFunction) -> ExecutionEnvironment:
    """Set the environment variables and the import path of an execution environment in this process."""
    root = _code_folder(function.module)
    environment = ExecutionEnvironment(function, root)
    os.environ.update(environment.variables)
    os.environ.update(function.environment)
    time.tzset()
    tag_logs()
    if root not in sys.path:
        sys.path.append(root)
    return environment


class LambdaFunctions:
    """Lambda function that this process hosts.

    Args:
        function: The function. Its module is imported by the constructor.
        services: Its gRPC service.

    Raises:
        Faults: The module cannot be imported, or has no such handler.
    """

    startup: Hook | None = None
    shutdown: Hook | None = None

    def __init__(self, function: LambdaFunction, services: Sequence[GrpcService]) -> None:
        self._function = function
        self._services = services
        self._environment = install(function)
        self._context = copy_context()
        self._handler = self._context.run(_load_handler, function)
        self._async = any(
            map(inspect.iscoroutinefunction, (self._handler, getattr(self._handler, "__call__", None)))  # noqa: B004
        )

    @property
    def has_blocking(self) -> bool:
        """Whether the handler is a ``def`` function, which runs in a thread."""
        return not self._async

    def handlers(self, service: ServiceContext, threads: FunctionRunner) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method.

        Args:
            service: The service; failures go to its log.
            threads: The threads for a ``def`` handler.
        """
        run = self._run(threads)
        return {
            method.path: (method, chain(boundary, self._invoke_handler(method, service, run)))
            for one in self._services
            for method in one.methods.values()
        }

    def _invoke_handler(self, method: Method, service: ServiceContext, run: _Run) -> Handler:
        read, from_text = self._reader(method), _parsing(json_text.parse_event, method)
        invoked = method.name == INVOKE
        environment, log, largest = self._environment, service.log, self._function.max_message_bytes

        async def answer(call: Call) -> None:
            data = await call.receive_one()
            outside = call.caller in _OUTSIDE
            trusted = call.caller is not None and not outside
            as_text = invoked and call.metadata.wire(json_text.MARK[0]) == json_text.MARK[1]
            event = from_text(data) if as_text else read(data, call.metadata)
            event = events.with_verified_user(event, call.identity, trusted=trusted)
            request_id = new_request_id()
            trace.get_current_span().set_attribute("faas.invocation_id", request_id)
            timeout_at = time.monotonic() + environment.timeout
            deadline = timeout_at if call.deadline is None else min(timeout_at, call.deadline)
            client = call.metadata.wire(CLIENT_CONTEXT)
            context = LambdaContext(environment, request_id, deadline, ClientContext.of(client) if client else None)
            token = current_request_id.set(request_id)
            try:
                found = await _run_until(timeout_at, run(event, context))
            finally:
                current_request_id.reset(token)
            if found is None:
                log.error("%s Task timed out after %.2f seconds", request_id, environment.timeout)
                raise lambda_error.timed_out(environment.timeout, request_id, outside=outside)
            result, error = found
            kind, why, response = "", "", b""
            if error is not None:
                kind, why = _error_fields(error, request_id)
            elif invoked:
                try:
                    response = _response_message(result, largest, as_text=as_text)
                except _InvalidResultError as invalid:
                    error, kind, why = invalid, invalid.kind, str(invalid)
                    error.__traceback__ = None
            if error is not None:
                log.error("%s the handler failed: %s: %s", request_id, kind, why, exc_info=error)
                raise lambda_error.failed(error, kind, why, request_id, outside=outside) from _cause(error)
            await call.send(response)

        return answer

    def _reader(self, method: Method) -> Callable[[bytes, Metadata], Any]:
        """Return the function that makes the event of a request message."""
        if method.name == INVOKE:
            decode = _parsing(json_value.decode, method)
            return lambda data, _: decode(data)
        kind: Any = method.input
        parse, dump, region = _parsing(parser(kind), method), Codecs().of(kind).dump, self._function.region
        name = kind.DESCRIPTOR.full_name

        def read(data: bytes, metadata: Metadata) -> Any:
            message, origin = dump(parse(data)), events.event_origin(metadata, region)
            if name == TICK:
                return events.scheduled_event(message.get("schedule", ""), message.get("time", ""), origin)
            return events.published_event(name, message, origin)

        return read

    def _run(self, threads: FunctionRunner) -> _Run:
        """Return the function that calls the handler. It returns (result, None) or (None, exception)."""
        handler = self._handler
        inherited = InheritedContext()
        inherited.capture(self._context)

        def call(event: Any, context: LambdaContext) -> _Outcome:
            try:
                return handler(event, context), None
            except BaseException as error:  # noqa: BLE001 - it becomes Lambda's error object
                return None, _trim_traceback(error)

        async def threaded(event: Any, context: LambdaContext) -> _Outcome:
            call_in_progress, trace_context = current.get(), otel.get_current()

            def work(_: Block) -> _Outcome:
                call_token, id_token = current.set(call_in_progress), current_request_id.set(context.aws_request_id)
                attached = otel.attach(trace_context)
                try:
                    return call(event, context)
                finally:
                    otel.detach(attached)
                    current_request_id.reset(id_token)
                    current.reset(call_token)

            found: _Outcome = await threads.run(work, self._context)
            return found

        async def awaited(event: Any, context: LambdaContext) -> _Outcome:
            inherited.apply()
            try:
                return await contain(handler(event, context)), None
            except EscapedError as error:
                return None, _trim_traceback(error.__cause__ or error)
            except Exception as error:  # noqa: BLE001 - it becomes Lambda's error object
                return None, _trim_traceback(error)

        return awaited if self._async else threaded


_Outcome = tuple[Any, BaseException | None]
_Run = Callable[[Any, LambdaContext], Coroutine[Any, Any, _Outcome]]


def _code_folder(module: str) -> str:
    """Return the folder of the module's file. On AWS it is the folder of the unpacked code."""
    spec = module_spec(module)
    return str(Path(spec.origin).parent) if spec is not None and spec.origin else str(Path.cwd())


def _load_handler(function: LambdaFunction) -> Callable[[Any, LambdaContext], Any]:
    found: Any = load_module(function.module)
    place = getattr(found, "__file__", None) or function.module
    for name in function.handler.split("."):
        found = getattr(found, name, None)
    if found is None:
        text = f"there is no handler {function.handler!r}; write def {function.handler}(event, context)"
        raise Faults([Fault(place, text)])
    try:
        # A decorator may add arguments (metric_scope of aws-embedded-metrics), so its own signature counts.
        inspect.signature(found, follow_wrapped=False).bind(None, None)
    except TypeError:
        text = f"{function.handler!r} is no handler; write def {function.handler}(event, context)"
        raise Faults([Fault(place, text)]) from None
    except ValueError:  # a builtin without a signature
        pass
    return found  # type: ignore[no-any-return]


def _parsing(read: Callable[[bytes], Any], method: Method) -> Callable[[bytes], Any]:
    name = method.input.DESCRIPTOR.full_name

    def checked(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            raise InvalidArgument(f"the request is not a {name} message") from None

    return checked


async def _run_until(timeout_at: float, running: Coroutine[Any, Any, _Outcome]) -> _Outcome | None:
    """Return the outcome of an invocation, or None if it exceeds the timeout.

    A coroutine is cancelled then. However it ends, the invocation has timed out.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - every call has a task
    timeout = TaskTimeout(task)
    slot = timer_wheel(task).add(timeout_at, timeout)
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


def _trim_traceback(error: BaseException) -> BaseException:
    """Return the exception with a traceback that begins in the handler."""
    found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename in _FRAMEWORK_FILES:
        found = found.tb_next
    return error.with_traceback(found)


class _InvalidResultError(ValueError):
    """The result cannot be a response. ``kind`` is Lambda's ``errorType``."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _response_message(result: Any, largest: int, *, as_text: bool) -> bytes:
    """Return the response message of a result.

    Raises:
        _InvalidResultError: The result has no JSON form, or is too large.
    """
    try:
        response = json_value.pack(json_text.marshal(result)) if as_text else json_value.encode(result)
    except json_value.CannotMarshal as error:
        raise _InvalidResultError(lambda_error.MARSHAL, f"Unable to marshal response: {error}") from None
    if len(response) > largest:
        why = f"Response payload size ({len(response)} bytes) exceeded maximum allowed payload size ({largest} bytes)."
        raise _InvalidResultError(lambda_error.TOO_LARGE, why)
    return response


def _error_fields(error: BaseException, request_id: str) -> tuple[str, str]:
    """Return ``errorType`` and ``errorMessage`` of an exception."""
    if isinstance(error, SystemExit):
        return lambda_error.EXITED, f"RequestId: {request_id} Error: Runtime exited: {error.code}"
    return type(error).__name__, text_of(error)


def _cause(error: BaseException) -> Exception:
    """Return the exception that the span records."""
    return error if isinstance(error, Exception) else wrap_escaped(error)
