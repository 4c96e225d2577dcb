"""Failures of Lambda functions as gRPC statuses.

On AWS the response of a failed direct invocation has ``X-Amz-Function-Error`` and the object ``{"errorMessage",
"errorType", "requestId", "stackTrace"}``. Here it is a status, because a gRPC call fails so: INTERNAL, CANCELLED for a
``CancelledError``, or DEADLINE_EXCEEDED for a timeout. It has two details. ``google.rpc.ErrorInfo`` marks the failure
as the function's own. ``google.protobuf.Struct`` is Lambda's object. A caller from outside the mesh, through the edge,
gets only the first.

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

__all__ = ["DOMAIN", "EXITED", "MARSHAL", "TIMED_OUT", "TOO_LARGE", "failed", "is_function_failure", "timed_out"]

DOMAIN = "lambda"
EXITED = "Runtime.ExitError"
MARSHAL = "Runtime.MarshalError"
TIMED_OUT = "Sandbox.Timedout"
TOO_LARGE = "Function.ResponseSizeTooLarge"

_MAX_OBJECT_SIZE = 2000
"""Bytes of the error object. gRPC clients take about 3000 bytes of details (``mesh.rpc.status``)."""
_MAX_MESSAGE_LENGTH = 800
"""Characters of the message and of the error type."""


def failed(error: BaseException, kind: str, text: str, request_id: str, *, outside: bool) -> StatusError:
    """Return the status of an invocation whose handler raised, or returned a value without a JSON form.

    Args:
        error: The exception. Its traceback begins in the handler.
        kind: ``errorType``.
        text: ``errorMessage``.
        request_id: Id of the invocation.
        outside: Whether the caller comes through the edge. Then the status has no internals.
    """
    kind_of = Cancelled if isinstance(error, asyncio.CancelledError) else Internal
    if outside:
        return kind_of("the function failed", details=[_error_info("Unhandled", request_id)])
    trace = traceback.format_list(traceback.extract_tb(error.__traceback__))
    details = [_error_info("Unhandled", request_id), _error_object(kind, text, request_id, trace)]
    return kind_of((f"{kind}: {text}" if text else kind)[:_MAX_MESSAGE_LENGTH], details=details)


def timed_out(seconds: float, request_id: str, *, outside: bool) -> StatusError:
    """Return the status of an invocation that exceeded the function's timeout."""
    text = f"Task timed out after {seconds:.2f} seconds"
    mark = _error_info(TIMED_OUT, request_id)
    if outside:
        return DeadlineExceeded("the function took too long", details=[mark])
    body = _error_object(TIMED_OUT, f"RequestId: {request_id} Error: {text}", request_id, ())
    return DeadlineExceeded(text, details=[mark, body])


def is_function_failure(error: StatusError) -> bool:
    """Whether a status is the function's own failure, and not one on the way to it."""
    return any(isinstance(detail, ErrorInfo) and detail.domain == DOMAIN for detail in error.details)


def _error_info(reason: str, request_id: str) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain=DOMAIN, metadata={"requestId": request_id})


def _error_object(kind: str, text: str, request_id: str, trace: Sequence[str]) -> Struct:
    """Return Lambda's object. If it is too large, the outermost frames are left out."""
    text, kind = text[:_MAX_MESSAGE_LENGTH], kind[:_MAX_MESSAGE_LENGTH]
    fields: dict[str, Any] = {"errorMessage": text, "errorType": kind, "requestId": request_id}
    kept = list(trace)
    while True:
        struct = Struct()
        struct.update({**fields, "stackTrace": kept})
        if not kept or struct.ByteSize() <= _MAX_OBJECT_SIZE:
            return struct
        del kept[0]
