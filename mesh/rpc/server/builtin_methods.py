"""Methods of the built-in services, health and reflection, from their generated descriptors.

The methods are PUBLIC, because probes and stock clients call them without a token.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from mesh.contract.model import Access, Method
from mesh.errors import InvalidArgument

__all__ = ["decode", "methods_of"]


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


def decode(method: Method, data: bytes) -> Any:
    """Return the request message of a method.

    Raises:
        InvalidArgument: The bytes are not such a message.
    """
    try:
        return method.input.FromString(data)
    except DecodeError:
        raise InvalidArgument(f"the request is not a {method.input.DESCRIPTOR.full_name} message") from None
