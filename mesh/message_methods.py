"""Methods of protobuf messages as functions, safe for messages of every contract.

A field may have the name of a method (``ListFields``, ``WhichOneof``), and ``message.ListFields`` is then the value of
the field. These functions are methods of the base class of all generated message classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

__all__ = [
    "class_descriptor", "clear", "clear_field", "descriptor_of", "extensions", "has_field", "list_fields", "merge",
    "missing", "parser", "serialize", "serialize_partial", "set_in_parent", "which_oneof",
]  # fmt: skip

_base: Any = next(one for one in Empty.__mro__ if "ListFields" in vars(one))
"""Base class of the generated message classes."""

clear: Callable[[Any], None] = _base.Clear
clear_field: Callable[[Any, str], None] = _base.ClearField
has_field: Callable[[Any, str], bool] = _base.HasField
list_fields: Callable[[Any], list[tuple[Any, Any]]] = _base.ListFields
missing: Callable[[Any], list[str]] = _base.FindInitializationErrors
"""Return the paths of unset ``required`` fields, with the names of the .proto file."""
merge: Callable[[Any, bytes], int] = _base.MergeFromString
serialize: Callable[..., bytes] = _base.SerializeToString
serialize_partial: Callable[[Any], bytes] = _base.SerializePartialToString
set_in_parent: Callable[[Any], None] = _base.SetInParent
which_oneof: Callable[[Any, str], str | None] = _base.WhichOneof
extensions: Callable[[Any], Any] = vars(_base)["Extensions"].__get__


def parser(message: type[Message]) -> Callable[[bytes], Any]:
    """Return ``FromString`` of a message class, even if a nested type has that name."""
    parse: Callable[[bytes], Any] = vars(_base)["FromString"].__get__(None, message)
    return parse


def class_descriptor(message: type[Message]) -> Descriptor:
    """Return the descriptor of a message class."""
    found: Any = message.DESCRIPTOR
    return found  # type: ignore[no-any-return]


def descriptor_of(message: Message) -> Descriptor:
    """Return the descriptor of a message."""
    found: Any = type(message).DESCRIPTOR
    return found  # type: ignore[no-any-return]
