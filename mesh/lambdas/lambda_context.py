"""The handler's second argument, as AWS documents it for Python.

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
    "Identity",
    "Instance",
    "LambdaContext",
    "identifier",
    "requested",
    "tag_logs",
]

ACCOUNT = "000000000000"
"""The AWS account, wherever a handler is told one."""
VERSION = "$LATEST"
CLIENT_CONTEXT = b"x-amz-client-context"
"""Metadata of a direct invocation: base64 of a JSON object, as the header of that name on AWS."""

_VERSION_0 = ~(0xF << 76 | 0x3 << 62)
_VERSION_4 = 0x4 << 76 | 0x2 << 62
"""Version and variant of a random UUID (RFC 9562, section 5.4)."""
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def identifier() -> str:
    """Return the id of an invocation or of a request: a random UUID, which is no secret and costs no system call."""
    text = f"{getrandbits(128) & _VERSION_0 | _VERSION_4:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


requested: ContextVar[str] = ContextVar("aws_request_id", default="")
"""The id of the invocation that runs."""


class _Tag(logging.Filter):
    """Gives each record of an invocation ``aws_request_id``, as the filter of Lambda's own runtime does."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = requested.get()
        if request_id:
            record.aws_request_id = request_id
        return True


_TAG = _Tag()


def tag_logs() -> None:
    """Have the handlers of the root logger say which invocation a line belongs to."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_TAG)


class Identity:
    """The Amazon Cognito identity that authorized the request: none, here; the user is in the event's authorizer."""

    cognito_identity_id: str | None = None
    cognito_identity_pool_id: str | None = None


class Client:
    """The application that a client context names."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.installation_id = said.get("installation_id")
        self.app_title = said.get("app_title")
        self.app_version_name = said.get("app_version_name")
        self.app_version_code = said.get("app_version_code")
        self.app_package_name = said.get("app_package_name")


class ClientContext:
    """What a client sends beside the event.

    Attributes:
        client: The application, or None.
        custom: Values of the application's own, or None.
        env: What the AWS SDK says of the device, or None.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        client = said.get("client")
        self.client = Client(client) if isinstance(client, dict) else None
        self.custom = said.get("custom")
        self.env = said.get("env")

    @classmethod
    def of(cls, text: bytes) -> ClientContext | None:
        """Return what the metadata says; None for what is no client context."""
        try:
            said = json.loads(b64decode(text))
        except ValueError:
            return None
        return cls(said) if isinstance(said, dict) else None


class Instance:
    """One execution environment of a function: what all its invocations share.

    Args:
        function: The function.
        root: The folder of its code.
    """

    def __init__(self, function: LambdaFunction, root: str) -> None:
        region = function.region
        self.name = function.name
        self.memory = str(function.memory)
        self.timeout = function.timeout
        self.log_group = f"/aws/lambda/{function.name}"
        self.log_stream = f"{datetime.now(UTC):%Y/%m/%d}/[{VERSION}]{uuid4().hex}"
        self.arn = f"arn:aws:lambda:{region}:{ACCOUNT}:function:{function.name}"
        self.environment = {
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
    """One invocation, as the handler sees it.

    Attributes:
        aws_request_id: The invocation's id.
        function_name: The function's name.
        function_version: Its version.
        memory_limit_in_mb: Megabytes, as text: so it is on AWS.
        invoked_function_arn: Its name in AWS's form.
        log_group_name: Where AWS would keep its log.
        log_stream_name: The part of it that is this execution environment's.
        identity: Amazon Cognito's; its values are None.
        client_context: What a client sent beside the event, or None.
    """

    __slots__ = (
        "_until", "aws_request_id", "client_context", "function_name", "function_version", "identity",
        "invoked_function_arn", "log_group_name", "log_stream_name", "memory_limit_in_mb", "tenant_id",
    )  # fmt: skip

    def __init__(self, instance: Instance, request_id: str, until: float, client_context: ClientContext | None) -> None:
        self.aws_request_id = request_id
        self.function_name = instance.name
        self.function_version = VERSION
        self.memory_limit_in_mb = instance.memory
        self.invoked_function_arn = instance.arn
        self.log_group_name = instance.log_group
        self.log_stream_name = instance.log_stream
        self.identity = Identity()
        self.client_context = client_context
        self.tenant_id: str | None = None
        self._until = until

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds that are left until the invocation times out, not below 0."""
        return max(0, int((self._until - time.monotonic()) * 1000))

    def log(self, message: object) -> None:
        """Write to the log, as ``print`` does."""
        sys.stdout.write(f"{message}\n")

    def __repr__(self) -> str:
        return f"LambdaContext([aws_request_id={self.aws_request_id},function_name={self.function_name}])"
