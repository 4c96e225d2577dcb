"""Events and results as JSON text: a ``google.protobuf.Value`` with a ``string_value`` that holds it.

What ``Invoke`` takes and answers is a ``Value``. A call with the metadata ``x-mesh-json: 1`` sends the event as JSON
text in one and gets the result so, which is what the edge does: a ``Value`` of forty fields is forty messages, and a
number in it a double; as text it is JSON on the whole way, as between API Gateway and Lambda.

What a handler may return is what Lambda's Python runtime can write: the JSON types, tuples, ``Decimal``, and bytes that
hold JSON (github.com/aws/aws-lambda-python-runtime-interface-client, ``lambda_runtime_marshaller``).
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import orjson

from mesh.errors import InvalidArgument
from mesh.lambdas.value import CannotMarshal, held, unpack

__all__ = ["MARK", "event_of", "marshal"]

MARK = (b"x-mesh-json", b"1")
"""The metadata of a call whose event and result are text, as it is on the wire."""


def event_of(data: bytes) -> Any:
    """Return the event of a request.

    Raises:
        google.protobuf.message.DecodeError: It is no ``Value``.
        InvalidArgument: It does not hold JSON.
    """
    try:
        return orjson.loads(unpack(data))
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the event is not JSON: {error}; x-mesh-json says that its text is") from None


def marshal(result: Any) -> bytes:
    """Return a result as JSON text.

    Raises:
        CannotMarshal: It has no JSON form.
    """
    try:
        return _encode(held(result)).encode()
    except UnicodeEncodeError:
        raise CannotMarshal("a text with lone surrogates") from None
    except RecursionError:
        raise CannotMarshal("too many levels") from None
    except (TypeError, ValueError) as error:
        raise CannotMarshal(str(error)) from None


def _default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default).encode
