"""Annotations of functions compared with the contract, for ``mesh check``.

An annotation that cannot be evaluated (its name is imported for type checkers only), and a type that says nothing
(``Any``, ``object``, a protocol, a type variable) is no fault. A union is right if one of its members is.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from mesh.context import Context
from mesh.message_methods import class_descriptor

if TYPE_CHECKING:
    from mesh.contract.model import Method

__all__ = ["annotation_faults"]

_REQUESTS = {
    True: (collections.abc.AsyncIterator, collections.abc.AsyncIterable),
    False: (collections.abc.Iterator, collections.abc.Iterable),
}
"""Types of a stream of requests that a function takes, by whether it is ``async def``."""
_RESPONSES = {
    True: (*_REQUESTS[True], collections.abc.AsyncGenerator),
    False: (*_REQUESTS[False], collections.abc.Generator),
}
_UNKNOWN = object()
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ABSTRACT = ("collections.abc", "typing")
"""Modules of abstract types, some of which are protocols and yet say something."""


def annotation_faults(name: str, function: Callable[..., Any], method: Method) -> Iterator[str]:
    """Yield what is wrong in the annotations of a method's function.

    Args:
        name: Name of the function.
        function: The function, which takes two arguments.
        method: The method.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    is_async = _is_async(function)
    where = f" ({method.place})" if method.place else ""
    title = f"{method.service}/{method.name}{where}"
    parameters = [parameter for parameter in signature.parameters.values() if parameter.kind in _POSITIONAL]
    annotations = [_evaluate(parameter.annotation, function) for parameter in parameters[:2]]
    request, response = method.input.DESCRIPTOR.full_name, method.output.DESCRIPTOR.full_name
    if annotations and not _is_right(annotations[0], request, _REQUESTS[is_async] if method.client_streaming else ()):
        wanted = _wanted(request, _REQUESTS[is_async] if method.client_streaming else ())
        yield f"{name} takes {_text(annotations[0])}, and {title} gives it {wanted}"
    if len(annotations) > 1 and not _may_be(annotations[1], lambda kind: issubclass(Context, kind)):
        yield f"{name} takes {_text(annotations[1])} as its context, which is a mesh.Context"
    returned = _evaluate(signature.return_annotation, function)
    if not _is_right(returned, response, _RESPONSES[is_async] if method.server_streaming else ()):
        wanted = _wanted(response, _RESPONSES[is_async] if method.server_streaming else ())
        verb = "yields" if method.server_streaming else "returns"
        yield f"{name} {verb} {_text(returned)}, and {title} answers with {wanted}"


def _is_async(function: Callable[..., Any]) -> bool:
    inner = inspect.unwrap(function)
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, inner, getattr(function, "__call__", None))  # noqa: B004
    )


def _evaluate(annotation: Any, function: Callable[..., Any]) -> Any:
    """Return the type of an annotation; ``_UNKNOWN`` if there is none, or its names are not known at run time."""
    if annotation is inspect.Parameter.empty:
        return _UNKNOWN
    if not isinstance(annotation, str):
        return annotation
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return eval(annotation, names)  # noqa: S307 - the user's own code, as typing.get_type_hints evaluates it
    except Exception:  # noqa: BLE001 - a name for type checkers only; any code may stand in an annotation
        return _UNKNOWN


def _is_right(found: Any, message: str, streams: tuple[type, ...]) -> bool:
    """Return whether a type may stand for a message, or for a stream of it."""

    def is_message(kind: type) -> bool:
        return kind is Message or (issubclass(kind, Message) and class_descriptor(kind).full_name == message)

    if not streams:
        return _may_be(found, is_message)
    for one in _members(found):
        origin = typing.get_origin(one) or one
        if not isinstance(origin, type) or _says_nothing(origin):
            return True
        arguments = typing.get_args(one)
        if origin in streams and (not arguments or _may_be(arguments[0], is_message)):
            return True
    return False


def _may_be(found: Any, is_right: Callable[[type], bool]) -> bool:
    for one in _members(found):
        origin = typing.get_origin(one) or one
        if not isinstance(origin, type) or _says_nothing(origin) or is_right(origin):
            return True
    return False


def _members(found: Any) -> Iterator[Any]:
    """Yield the members of a union, or the type itself, without ``Annotated``, aliases and ``None``."""
    found = getattr(found, "__value__", found)  # ``type X = …`` (PEP 695)
    found = getattr(found, "__supertype__", found)  # ``NewType``
    origin = typing.get_origin(found)
    if origin is typing.Annotated:
        yield from _members(typing.get_args(found)[0])
    elif origin in (typing.Union, types.UnionType):
        for one in typing.get_args(found):
            if one is not types.NoneType:
                yield from _members(one)
    elif found is None:
        yield types.NoneType
    else:
        yield found


def _says_nothing(kind: type) -> bool:
    return kind in (object, Any) or (getattr(kind, "_is_protocol", False) is True and kind.__module__ not in _ABSTRACT)


def _wanted(message: str, streams: tuple[type, ...]) -> str:
    return f"{streams[0].__name__}[{message}]" if streams else message


def _text(found: Any) -> str:
    """Return a type as a reader knows it: messages by their full names."""
    if isinstance(found, type) and issubclass(found, Message) and found is not Message:
        return class_descriptor(found).full_name
    arguments = typing.get_args(found)
    origin = typing.get_origin(found)
    if isinstance(origin, type) and arguments:
        return f"{origin.__name__}[{', '.join(map(_text, arguments))}]"
    return found.__name__ if isinstance(found, type) else str(found)
