"""Lambda's error shape as a gRPC status.

On AWS a direct invocation that fails answers ``X-Amz-Function-Error`` and the object ``{"errorMessage", "errorType",
"requestId", "stackTrace"}``. Here it is a status, because that is how a gRPC call fails: INTERNAL, CANCELLED for a
``CancelledError``, or DEADLINE_EXCEEDED for a time-out, with two details. ``google.rpc.ErrorInfo`` marks it as the
function's own failure; ``google.protobuf.Struct`` is Lambda's object. A caller outside of the mesh, who comes through
the edge, gets the first alone.

Source: https://docs.aws.amazon.com/lambda/latest/dg/python-exceptions.html
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct
from google.rpc.error_details_pb2 import ErrorInfo

from mesh.errors import Cancelled, DeadlineExceeded, Internal, StatusError

__all__ = ["DOMAIN", "EXITED", "MARSHAL", "TIMED_OUT", "TOO_LARGE", "failed", "is_functions", "timed_out"]

DOMAIN = "lambda"
EXITED = "Runtime.ExitError"
MARSHAL = "Runtime.MarshalError"
TIMED_OUT = "Sandbox.Timedout"
TOO_LARGE = "Function.ResponseSizeTooLarge"

_ROOM = 2000
"""Bytes of the error object: more than about 3000 of details no gRPC client takes (``mesh.rpc.status``)."""
_LONGEST = 800
"""Characters of the message."""


def failed(error: BaseException, kind: str, text: str, request_id: str, *, outside: bool) -> StatusError:
    """Return the status of an invocation whose handler raised, or returned what has no JSON form.

    Args:
        error: What was raised; its traceback begins in the handler.
        kind: ``errorType``.
        text: ``errorMessage``.
        request_id: The invocation.
        outside: The caller comes through the edge, and learns nothing of the inside.
    """
    kind_of = Cancelled if isinstance(error, asyncio.CancelledError) else Internal
    if outside:
        return kind_of("the function failed", details=[_mark("Unhandled", request_id)])
    trace = traceback.format_list(traceback.extract_tb(error.__traceback__))
    details = [_mark("Unhandled", request_id), _object(kind, text, request_id, trace)]
    return kind_of((f"{kind}: {text}" if text else kind)[:_LONGEST], details=details)


def timed_out(seconds: float, request_id: str, *, outside: bool) -> StatusError:
    """Return the status of an invocation that took longer than the function may."""
    text = f"Task timed out after {seconds:.2f} seconds"
    mark = _mark(TIMED_OUT, request_id)
    if outside:
        return DeadlineExceeded("the function took too long", details=[mark])
    body = _object(TIMED_OUT, f"RequestId: {request_id} Error: {text}", request_id, ())
    return DeadlineExceeded(text, details=[mark, body])


def is_functions(error: StatusError) -> bool:
    """Whether a status is the function's own failure, not that of something on the way to it."""
    return any(isinstance(detail, ErrorInfo) and detail.domain == DOMAIN for detail in error.details)


def _mark(reason: str, request_id: str) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain=DOMAIN, metadata={"requestId": request_id})


def _object(kind: str, text: str, request_id: str, trace: Sequence[str]) -> Struct:
    """Return Lambda's object; the outermost frames are left out when there is no room for them."""
    shape: dict[str, Any] = {"errorMessage": text[:_LONGEST], "errorType": kind[:_LONGEST], "requestId": request_id}
    kept = list(trace)
    while True:
        made = Struct()
        made.update({**shape, "stackTrace": kept})
        if not kept or made.ByteSize() <= _ROOM:
            return made
        del kept[0]
