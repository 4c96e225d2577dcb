"""Serialized messages from JSON: what protobuf cannot write, or read again, is the caller's fault."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, EncodeError

from mesh.errors import InvalidArgument
from mesh.message_methods import missing, parser, serialize

__all__ = ["SAFE_DEPTH", "is_deep", "serialized"]

SAFE_DEPTH = 32
"""JSON nesting that never exceeds the 100 message levels of protobuf: ``Value`` needs up to three for one."""
_MAX_NAMED_FIELDS = 10
"""Missing fields that an error names."""


def is_deep(text: bytes) -> bool:
    """Whether a JSON text may be nested deeper than ``SAFE_DEPTH``."""
    return text.count(b"{") + text.count(b"[") > SAFE_DEPTH


def serialized(message: Any, *, deep: bool) -> bytes:
    """Return a message serialized.

    Args:
        message: The message.
        deep: Whether it may be nested so deeply that a service cannot parse it.

    Raises:
        InvalidArgument: It lacks a required field, or is nested too deeply.
    """
    try:
        data = serialize(message)
        if deep:
            parser(type(message))(data)
    except (EncodeError, DecodeError):
        raise _unserializable(message) from None
    return data


def _unserializable(message: Any) -> InvalidArgument:
    missing_fields = missing(message)[:_MAX_NAMED_FIELDS]
    if not missing_fields:
        return InvalidArgument("the request is nested too deeply")
    text = f"{', '.join(missing_fields)}: the field is required"
    return InvalidArgument(text, violations=dict.fromkeys(missing_fields, "the field is required"))
