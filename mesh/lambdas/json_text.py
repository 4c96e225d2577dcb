"""Events and results as JSON text: a ``google.protobuf.Value`` with a ``string_value`` that holds it.

What ``Invoke`` takes and answers is a ``Value``. A call with the metadata ``x-mesh-json: 1`` sends the event as JSON
text in one and gets the result so, which is what the edge does: a ``Value`` of forty fields is forty messages, and a
number in it a double; as text it is JSON on the whole way, as between API Gateway and Lambda.

A result is written as Lambda's Python runtime writes it, which is with simplejson: a ``Decimal`` with all its digits,
named tuples and whatever else has ``_asdict()`` as objects, bytes as the text that they hold; a result of bytes is JSON
already. Two things are otherwise: NaN and infinity, which some versions of the runtime write, are refused, because they
are no JSON; and there are no spaces.

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
from mesh.lambdas.json_value import CannotMarshal, unfit, unpack

__all__ = ["MARK", "event_of", "marshal"]

MARK = (b"x-mesh-json", b"1")
"""The metadata of a call whose event and result are text, as it is on the wire."""

_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG = b"0" * 19
"""As long is an integer that may not fit into 64 bits."""


def event_of(data: bytes) -> Any:
    """Return the event of a request, with all digits of its integers.

    Raises:
        google.protobuf.message.DecodeError: It is no ``Value``.
        InvalidArgument: It does not hold JSON.
    """
    text = unpack(data)
    try:
        event = orjson.loads(text)  # which makes a double of a longer integer
        return json.loads(text) if _LONG in text.translate(_ZEROS) else event
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the event is not JSON: {error}; x-mesh-json says that its text is") from None


def marshal(result: Any) -> bytes:
    """Return a result as JSON text.

    Raises:
        CannotMarshal: It has no JSON form.
    """
    try:
        if isinstance(result, bytes):
            orjson.loads(result)
            return result
        text: str = _encode(result)
        return text.encode()
    except orjson.JSONDecodeError:
        raise CannotMarshal("bytes that are no JSON") from None
    except BaseException as error:  # noqa: BLE001 - what the handler's own objects raise while they are written
        raise unfit(error) from None


def _default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return RawJSON(str(value)) if value.is_finite() else math.nan
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode = JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_default,
    use_decimal=False,  # which takes a Decimal as a key, too
).encode  # fmt: skip
