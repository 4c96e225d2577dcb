"""Services that every sidecar has beside the user's: their methods from generated descriptors, their handlers.

They are always PUBLIC and pass no authentication: a probe and a stock client come without a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from mesh.call import Call, Handler
from mesh.contract.model import Access, Method
from mesh.errors import InvalidArgument

__all__ = ["methods_of", "unary"]


def methods_of(service: ServiceDescriptor) -> dict[str, Method]:
    """Return the methods of a service by their short names."""
    return {
        method.name: Method(
            name=method.name,
            service=service.full_name,
            path=f"/{service.full_name}/{method.name}",
            input=message_factory.GetMessageClass(method.input_type),
            output=message_factory.GetMessageClass(method.output_type),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
            access=Access.PUBLIC,
        )
        for method in service.methods
    }


def unary(method: Method, answer: Callable[[Any], Awaitable[Message]]) -> Handler:
    """Return the handler of a unary method."""

    async def handle(call: Call) -> None:
        request = decode(method, await call.receive_one())
        await call.send((await answer(request)).SerializeToString())

    return handle


def decode(method: Method, data: bytes) -> Any:
    """Return the request.

    Raises:
        InvalidArgument: The bytes are no such message.
    """
    try:
        return method.input.FromString(data)
    except DecodeError:
        raise InvalidArgument(f"the request is not a {method.input.DESCRIPTOR.full_name} message") from None
