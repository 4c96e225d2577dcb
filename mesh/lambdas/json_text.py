"""Events and results as JSON text in the ``string_value`` of a ``google.protobuf.Value``.

Request and response of ``Invoke`` are a ``Value``. With the metadata ``x-mesh-json: 1`` both are JSON text in one. The
edge calls so. A ``Value`` of forty fields is forty messages, and its numbers are doubles. Text stays JSON all the way,
as between API Gateway and Lambda.

A result is written as by Lambda's Python runtime, which uses simplejson: a ``Decimal`` with all its digits, named
tuples and other objects with ``_asdict()`` as JSON objects, bytes as text. A result that is bytes is JSON already.
There are two differences. NaN and infinity, which some versions of the runtime write, are refused, because they are not
JSON. And there are no spaces.

Source: github.com/aws/aws-lambda-python-runtime-interface-client, ``awslambdaric/lambda_runtime_marshaller.py``.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import orjson
from simplejson import JSONEncoder
from simplejson.raw_json import RawJSON

from mesh.errors import InvalidArgument
from mesh.lambdas.json_value import CannotMarshal, marshal_error, unpack

__all__ = ["MARK", "marshal", "parse_event"]

MARK = (b"x-mesh-json", b"1")
"""Metadata, as on the wire, of a call whose event and result are JSON text."""

_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_INTEGER = b"0" * 19
"""Digits of an integer that may exceed 64 bits."""


def parse_event(data: bytes) -> Any:
    """Return the event of a request, with exact integers.

    Raises:
        google.protobuf.message.DecodeError: The data is not a ``Value``.
        InvalidArgument: Its text is not JSON.
    """
    text = unpack(data)
    try:
        event = orjson.loads(text)  # turns longer integers into doubles
        return json.loads(text) if _LONG_INTEGER in text.translate(_ZEROS) else event
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the event is not JSON: {error}; x-mesh-json says that its text is") from None


def marshal(result: Any) -> bytes:
    """Return a result as JSON text.

    Raises:
        CannotMarshal: The result has no JSON form.
    """
    try:
        if isinstance(result, bytes):
            orjson.loads(result)
            return result
        text: str = _encode(result)
        return text.encode()
    except orjson.JSONDecodeError:
        raise CannotMarshal("bytes that are no JSON") from None
    except BaseException as error:  # noqa: BLE001 - raised by objects of the handler during encoding
        raise marshal_error(error) from None


def _default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return RawJSON(str(value)) if value.is_finite() else math.nan
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode = JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default,
    use_decimal=False,  # with True a Decimal could be a key
).encode  # fmt: skip
