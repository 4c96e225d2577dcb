"""``google.rpc.Status`` as JSON: the body of an error response, and of an error in a stream. Pure.

Source: google/rpc/{status,code,error_details}.proto.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2, message_factory
from google.protobuf.message import DecodeError, Message

from mesh.errors import StatusError
from mesh.message_methods import descriptor_of, parser
from mesh.protojson.codec import Codecs
from mesh.protojson.wellknown import JsonEncodeError

if TYPE_CHECKING:
    from mesh.contract.model import Method

__all__ = ["status_json"]

_INTERNAL_DETAILS = frozenset(("google.rpc.DebugInfo",))
"""Details that no client gets: stack traces."""

_codecs = Codecs()


def status_json(error: StatusError, method: Method | None = None) -> dict[str, Any]:
    """Return the JSON value of a status (``google.rpc.Status``).

    Args:
        error: The status.
        method: The method that failed. Details of its contract's own types are then readable.
    """
    pool = method.input.DESCRIPTOR.file.pool if method is not None else None
    return {"code": int(error.code), "message": error.message, "details": list(_details(error.details, pool))}


def _details(details: Iterable[Message], pool: Any) -> Iterator[dict[str, Any]]:
    """Yield the details as JSON, each with its ``@type``.

    Args:
        details: The messages. One whose type was unknown where it was read is an ``Any``.
        pool: Descriptor pool with the contract's own types, or None.
    """
    for detail in details:
        if not isinstance(detail, any_pb2.Any):
            yield from _json(f"type.googleapis.com/{descriptor_of(detail).full_name}", detail)
            continue
        try:
            found: Any = pool.FindMessageTypeByName(detail.TypeName()) if pool is not None else None
            message = found and parser(message_factory.GetMessageClass(found))(detail.value)
        except (KeyError, DecodeError):
            message = None
        if message is not None:
            yield from _json(detail.type_url, message)
        else:  # a type that the edge does not know, and the client may
            yield {"@type": detail.type_url, "value": b64encode(detail.value).decode()}


def _json(url: str, detail: Any) -> Iterator[dict[str, Any]]:
    if descriptor_of(detail).full_name in _INTERNAL_DETAILS:
        return
    codec = _codecs.of(type(detail))
    try:
        value = codec.dump(detail)
    except JsonEncodeError:  # the detail has no JSON form: the error is sent without it
        return
    if codec.wrapped:
        yield {"@type": url, "value": value}
    elif "@type" not in value:  # a field with that JSON name would replace the URL
        yield {"@type": url, **value}
