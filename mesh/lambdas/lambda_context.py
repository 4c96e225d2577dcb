"""Lambda context: the handler's second argument, and the execution environment that its invocations share.

Source: https://docs.aws.amazon.com/lambda/latest/dg/python-context.html
"""

from __future__ import annotations

import json
import logging
import sys
import time
from base64 import b64decode
from contextvars import ContextVar
from datetime import UTC, datetime
from random import getrandbits  # the module's own generator, which is seeded anew in each fork
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.config.lambda_function import LambdaFunction

__all__ = [
    "ACCOUNT",
    "VERSION",
    "ClientContext",
    "CognitoIdentity",
    "ExecutionEnvironment",
    "LambdaContext",
    "current_request_id",
    "new_request_id",
    "tag_logs",
]

ACCOUNT = "000000000000"
"""AWS account id in ARNs and events."""
VERSION = "$LATEST"
CLIENT_CONTEXT = b"x-amz-client-context"
"""Metadata of a direct invocation: a base64-encoded JSON object, as in the header of that name on AWS."""

_VERSION_0 = ~(0xF << 76 | 0x3 << 62)
_VERSION_4 = 0x4 << 76 | 0x2 << 62
"""Version and variant bits of a random UUID (RFC 9562, section 5.4)."""
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def new_request_id() -> str:
    """Return the id of an invocation or a request: a random UUID. It is not secret, and needs no system call."""
    text = f"{getrandbits(128) & _VERSION_0 | _VERSION_4:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


current_request_id: ContextVar[str] = ContextVar("aws_request_id", default="")
"""Id of the invocation in progress."""


class _RequestIdFilter(logging.Filter):
    """Log filter that adds ``aws_request_id`` to the records of an invocation, as in Lambda's runtime."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = current_request_id.get()
        if request_id:
            record.aws_request_id = request_id
        return True


_REQUEST_ID_FILTER = _RequestIdFilter()


def tag_logs() -> None:
    """Add the filter to the handlers of the root logger."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_REQUEST_ID_FILTER)


class CognitoIdentity:
    """Amazon Cognito identity, always empty. The user is in the event's authorizer."""

    cognito_identity_id: str | None = None
    cognito_identity_pool_id: str | None = None


class ClientApplication:
    """Application of a client context."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.installation_id = values.get("installation_id")
        self.app_title = values.get("app_title")
        self.app_version_name = values.get("app_version_name")
        self.app_version_code = values.get("app_version_code")
        self.app_package_name = values.get("app_package_name")


class ClientContext:
    """Client context of a direct invocation.

    Attributes:
        client: The application, or None.
        custom: Values of the application, or None.
        env: Values of the device from the AWS SDK, or None.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        client = values.get("client")
        self.client = ClientApplication(client) if isinstance(client, dict) else None
        self.custom = values.get("custom")
        self.env = values.get("env")

    @classmethod
    def of(cls, text: bytes) -> ClientContext | None:
        """Return the client context of the metadata, or None if the value is invalid."""
        try:
            values = json.loads(b64decode(text))
        except ValueError:
            return None
        return cls(values) if isinstance(values, dict) else None


class ExecutionEnvironment:
    """Execution environment of a function: values that all its invocations share.

    Args:
        function: The function.
        root: Folder of its code.
    """

    def __init__(self, function: LambdaFunction, root: str) -> None:
        region = function.region
        self.name = function.name
        self.memory = str(function.memory)
        self.timeout = function.timeout
        self.log_group = f"/aws/lambda/{function.name}"
        self.log_stream = f"{datetime.now(UTC):%Y/%m/%d}/[{VERSION}]{uuid4().hex}"
        self.arn = f"arn:aws:lambda:{region}:{ACCOUNT}:function:{function.name}"
        self.variables = {
            "AWS_DEFAULT_REGION": region,
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{_PYTHON}",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": self.memory,
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": VERSION,
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": self.log_group,
            "AWS_LAMBDA_LOG_STREAM_NAME": self.log_stream,
            "AWS_REGION": region,
            "LAMBDA_TASK_ROOT": root,
            "TZ": ":UTC",
            "_HANDLER": f"{function.module.rpartition('.')[2]}.{function.handler}",
        }


class LambdaContext:
    """Context of one invocation.

    Attributes:
        aws_request_id: The invocation's id.
        function_name: The function's name.
        function_version: Its version.
        memory_limit_in_mb: Megabytes, as text like on AWS.
        invoked_function_arn: Its ARN.
        log_group_name: Its log group, by AWS's naming.
        log_stream_name: The log stream of this execution environment.
        identity: The Amazon Cognito identity; its values are None.
        client_context: The client context, or None.
    """

    __slots__ = (
        "_deadline", "aws_request_id", "client_context", "function_name", "function_version", "identity",
        "invoked_function_arn", "log_group_name", "log_stream_name", "memory_limit_in_mb", "tenant_id",
    )  # fmt: skip

    def __init__(
        self,
        environment: ExecutionEnvironment,
        request_id: str,
        deadline: float,
        client_context: ClientContext | None,
    ) -> None:
        self.aws_request_id = request_id
        self.function_name = environment.name
        self.function_version = VERSION
        self.memory_limit_in_mb = environment.memory
        self.invoked_function_arn = environment.arn
        self.log_group_name = environment.log_group
        self.log_stream_name = environment.log_stream
        self.identity = CognitoIdentity()
        self.client_context = client_context
        self.tenant_id: str | None = None
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the invocation times out, at least 0."""
        return max(0, int((self._deadline - time.monotonic()) * 1000))

    def log(self, message: object) -> None:
        """Write to the log, as ``print`` does."""
        sys.stdout.write(f"{message}\n")

    def __repr__(self) -> str:
        return f"LambdaContext([aws_request_id={self.aws_request_id},function_name={self.function_name}])"
