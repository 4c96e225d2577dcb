"""Functions of a module: looked up by name, checked against the contract at the start, and wrapped as handlers.

Method ``GetUser`` is ``get_user(request, context)``. There is no decorator, no base class and no registry. A missing
function, a wrong signature or a failed import is a fault before the first call.

    ============== ========================= ==================================================
    method         first argument            function
    ============== ========================= ==================================================
    unary          the request               ``async def`` or ``def``, returns the response
    server stream  the request               ``async def`` or ``def`` that yields responses
    client stream  an iterator of requests   ``async def`` or ``def``, returns the response
    both           an iterator of requests   ``async def`` or ``def`` that yields responses
    ============== ========================= ==================================================

``async def`` runs on the event loop and gets requests as an async iterator. ``def`` runs in a thread (``mesh.threads``)
and gets requests as a plain iterator.

A module may have ``async def startup(service)``, awaited before the first call is accepted, and ``async def
shutdown(service)``, awaited after the last call has ended. ``service`` is ``mesh.context.Service``. If the contract has
a method ``Startup`` or ``Shutdown``, the function of that name belongs to the method.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sysconfig
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from mesh.boundary import boundary, contain, wrap_escaped
from mesh.call import Call, Handler, chain
from mesh.context import Context
from mesh.context_variables import InheritedContext
from mesh.contract import shadowed_stubs
from mesh.contract.function_names import function_names
from mesh.contract.model import generated_class
from mesh.errors import InvalidArgument
from mesh.faults import Fault, Faults
from mesh.function_annotations import annotation_faults
from mesh.message_methods import descriptor_of, parser, serialize
from mesh.rules.message_checks import request_check
from mesh.text import text_of
from mesh.threads import FunctionRunner

if TYPE_CHECKING:
    from mesh.context import Service as ServiceContext
    from mesh.contract.model import GrpcService, Method

__all__ = ["Functions", "Hook", "load_module", "module_spec"]

_HOOKS = ("startup", "shutdown")

Hook = Callable[["ServiceContext"], Any]


class Functions:
    """Functions of one module for its services.

    Args:
        module: Name of the module, which is imported.
        services: Services of the contract that the module implements.

    Attributes:
        startup: Hook ``startup`` of the module, or None.
        shutdown: Hook ``shutdown`` of the module, or None.

    Raises:
        Faults: The module cannot be imported, or functions are missing or have a wrong signature. All faults at once.
    """

    startup: Hook | None
    shutdown: Hook | None

    def __init__(self, module: str, services: Sequence[GrpcService]) -> None:
        hooks, faults = self._find(module, services)
        if faults:
            raise Faults(faults)
        self.startup = _hook(hooks.get("startup"), self._inherited, capture=True)
        self.shutdown = _hook(hooks.get("shutdown"), self._inherited)

    @classmethod
    def check(cls, module: str, services: Sequence[GrpcService]) -> tuple[list[Callable[..., Any]], list[Fault]]:
        """Return the functions and hooks of a module, and all faults, those of annotations included."""
        self = cls.__new__(cls)
        try:
            hooks, faults = self._find(module, services)
        except Faults as found:
            return [], list(found.faults)
        for method, function in self._functions:
            name = getattr(function, "__name__", method.name)
            faults += [Fault(self._place(function), text) for text in annotation_faults(name, function, method)]
        return [*(function for _, function in self._functions), *hooks.values()], faults

    def _find(self, module: str, services: Sequence[GrpcService]) -> tuple[dict[str, Hook], list[Fault]]:
        """Import the module and find its functions; return its hooks and the faults.

        Raises:
            Faults: The module cannot be imported.
        """
        self._inherited = InheritedContext()
        self._module = load_module(module)
        self._inherited.capture()
        self._file = getattr(self._module, "__file__", None) or module
        self._functions: list[tuple[Method, Callable[..., Any]]] = []
        faults: list[Fault] = []
        taken: dict[str, Method] = {}
        for service in services:
            names = function_names(service.methods)
            for method in service.methods.values():
                name = names[method.name]
                other = taken.setdefault(name, method)
                if other is not method:
                    faults.append(
                        Fault(
                            module,
                            f"{_title(other)} and {_title(method)} both need the function {name!r}; "
                            "implement them in two modules",
                        )
                    )
                    continue
                function = getattr(self._module, name, None)
                fault = self._fault(name, function, method)
                if fault is None:
                    assert function is not None  # noqa: S101 - a missing function is a fault
                    self._functions.append((method, function))
                else:
                    faults.append(fault)
        hooks: dict[str, Hook] = {}
        for name in _HOOKS:
            hook = None if name in taken else getattr(self._module, name, None)
            if hook is None:
                continue
            hooks[name] = hook
            if not (inspect.iscoroutinefunction(hook) and _takes(hook, 1)):
                faults.append(
                    Fault(self._place(hook), f"{name} is a hook of the mesh; write it as async def {name}(service)")
                )
        return hooks, faults

    @property
    def has_blocking(self) -> bool:
        """Whether a function is a ``def`` function, which blocks its thread."""
        return any(_kind(function) in ("generator", "value") for _, function in self._functions)

    def handlers(self, service: ServiceContext, threads: FunctionRunner) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method.

        Args:
            service: Service context of the functions.
            threads: Executor of ``def`` functions.

        Raises:
            Faults: A rule of a request cannot be compiled.
        """
        return {
            method.path: (method, chain(boundary, self._inherited, _handler(method, function, service, threads)))
            for method, function in self._functions
        }

    def _fault(self, name: str, function: Any, method: Method) -> Fault | None:
        """Return the fault of a method's function, or None."""
        where = f" ({method.place})" if method.place else ""
        if function is None:
            return Fault(
                f"{self._file}:1",
                f"there is no function {name!r} for {_title(method)}{where}; write {_shape(name, method)}",
            )
        if not callable(function):
            return Fault(
                self._place(function),
                f"{name!r} for {_title(method)}{where} is no function; it is of type {type(function).__name__}",
            )
        if not _takes(function, 2):
            return Fault(
                self._place(function),
                f"{name}{inspect.signature(function)} does not take the two arguments of {_title(method)}; "
                f"write {_shape(name, method)}",
            )
        yields = _kind(function) in ("async generator", "generator")
        if yields and not method.server_streaming:
            return Fault(
                self._place(function), f"{name} yields, but {_title(method)}{where} answers once; return the response"
            )
        if not yields and method.server_streaming:
            return Fault(
                self._place(function),
                f"{name} does not yield, but {_title(method)}{where} answers with a stream; yield each",
            )
        return None

    def _place(self, thing: Any) -> str:
        """Return file and line of a function, for a fault. Reads and parses the source."""
        try:
            _, line = inspect.getsourcelines(inspect.unwrap(thing))
            return f"{inspect.getsourcefile(inspect.unwrap(thing))}:{line}"
        except (TypeError, OSError):
            return self._file


def load_module(name: str) -> ModuleType:
    """Import a module of functions.

    Raises:
        Faults: The module cannot be imported. The place is the line of the user's code that failed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Faults([Fault(name, f"there is no module {error.name!r} where Python looks for it")]) from None
        raise Faults([_import_fault(name, error)]) from error
    except BaseException as error:  # noqa: BLE001 - also a module that ends the process
        raise Faults([_import_fault(name, error)]) from (error if isinstance(error, Exception) else wrap_escaped(error))


def module_spec(name: str) -> ModuleSpec | None:
    """Return the import spec of a module, or None. Imports its parent packages.

    Raises:
        Faults: A parent package cannot be imported.
    """
    try:
        return importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):  # ``load_module`` reports it
        return None
    except BaseException as error:  # noqa: BLE001 - also a module that ends the process
        raise Faults([_import_fault(name, error)]) from (error if isinstance(error, Exception) else wrap_escaped(error))


def _import_fault(name: str, error: BaseException) -> Fault:
    """Return the fault at the innermost line of the user's code, outside of Python, packages and the mesh."""
    text = f"{type(error).__name__}: {text_of(error)}{shadowed_stubs.explain(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        return Fault(f"{error.filename}:{error.lineno}", f"{type(error).__name__}: {error.msg}")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and frame.filename not in (__file__, importlib.__file__, importlib.util.__file__)
    ]
    if not frames:
        return Fault(name, f"the module cannot be imported: {text}")
    foreign = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    own = [frame for frame in frames if not frame.filename.startswith(foreign)] or frames
    return Fault(f"{own[-1].filename}:{own[-1].lineno}", f"the module {name} cannot be imported: {text}")


def _title(method: Method) -> str:
    return f"{method.service}/{method.name}"


def _shape(name: str, method: Method) -> str:
    argument = "requests" if method.client_streaming else "request"
    yields = ", which yields each response" if method.server_streaming else ""
    return f"async def {name}({argument}, context){yields}"


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _kind(function: Callable[..., Any]) -> str:
    """Return the kind of its result: ``coroutine``, ``async generator``, ``generator`` or ``value``."""
    for one in (function, getattr(function, "__call__", None), inspect.unwrap(function)):  # noqa: B004
        if inspect.iscoroutinefunction(one):
            return "coroutine"
        if inspect.isasyncgenfunction(one):
            return "async generator"
        if inspect.isgeneratorfunction(one):
            return "generator"
    return "value"


def _hook(hook: Hook | None, inherited: InheritedContext, *, capture: bool = False) -> Hook | None:
    if hook is None:
        return None

    @functools.wraps(hook)
    async def contained_hook(service: ServiceContext) -> None:
        inherited.apply()
        await contain(hook(service))
        if capture:
            inherited.capture()

    return contained_hook


# -- adapters, made once for each method --


def _handler(method: Method, function: Callable[..., Any], service: ServiceContext, threads: FunctionRunner) -> Handler:
    decode = _decoder(method)
    encode = _encoder(method, function)
    kind = _kind(function)

    async def unary(call: Call) -> None:
        argument: Any = RequestStream(call, decode) if method.client_streaming else decode(await call.receive_one())
        await call.send(encode(await function(argument, Context(call, service))))

    async def stream(call: Call) -> None:
        argument: Any = RequestStream(call, decode) if method.client_streaming else decode(await call.receive_one())
        async with aclosing(function(argument, Context(call, service))) as responses:
            async for response in responses:
                await call.send(encode(response))

    async def threaded(call: Call) -> None:
        request = decode(await call.receive_one())
        response = await threads.run(lambda _: encode(function(request, Context(call, service))))
        await call.send(response)

    async def threaded_stream(call: Call) -> None:
        request = None if method.client_streaming else decode(await call.receive_one())

        def respond(block: Callable[[Any], Any]) -> None:
            argument = BlockingRequestStream(call, decode, block) if method.client_streaming else request
            result = function(argument, Context(call, service))
            if not method.server_streaming:
                block(call.send(encode(result)))
                return
            try:
                for response in result:
                    block(call.send(encode(response)))
            finally:
                result.close()

        await threads.run(respond)

    plain = threaded_stream if method.client_streaming or method.server_streaming else threaded
    return {"coroutine": unary, "async generator": stream}.get(kind, plain)


class RequestStream:
    """Async iterator over the requests of a streaming method."""

    __slots__ = ("_call", "_decode")

    def __init__(self, call: Call, decode: Callable[[bytes], Message]) -> None:
        self._call = call
        self._decode = decode

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        data = await self._call.receive()
        if data is None:
            raise StopAsyncIteration
        return self._decode(data)


class BlockingRequestStream:
    """Iterator over the requests for a thread. Unlike a generator, it is not exhausted after an exception."""

    __slots__ = ("_block", "_call", "_decode")

    def __init__(self, call: Call, decode: Callable[[bytes], Message], block: Callable[[Any], Any]) -> None:
        self._call = call
        self._decode = decode
        self._block = block

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        data = self._block(self._call.receive())
        if data is None:
            raise StopIteration
        return self._decode(data)


def _decoder(method: Method) -> Callable[[bytes], Message]:
    """Return the decoder of a method's requests, which also checks them if the contract has rules for them."""
    parse: Callable[[bytes], Message] = parser(generated_class(method.input))
    name = method.input.DESCRIPTOR.full_name

    def decode(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError:
            # Bad input is INVALID_ARGUMENT. Stock servers return INTERNAL, which would look like a bug of the function.
            raise InvalidArgument(f"the request is not a {name} message") from None

    check = request_check(method)
    if check is None:
        return decode

    def decode_valid(data: bytes) -> Message:
        request = decode(data)
        check(request)
        return request

    return decode_valid


def _encoder(method: Method, function: Callable[..., Any]) -> Callable[[Any], bytes]:
    output = generated_class(method.output)
    name = output.DESCRIPTOR.full_name

    def encode(response: Any) -> bytes:
        if type(response) is output or (isinstance(response, Message) and descriptor_of(response).full_name == name):
            return serialize(response)
        verb = "yielded" if method.server_streaming else "returned"
        found = "None" if response is None else type(response).__name__
        if isinstance(response, Message):
            found = descriptor_of(response).full_name
        raise TypeError(f"{_name(function)} {verb} {found}, and {_title(method)} answers with {name}")

    return encode


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"
