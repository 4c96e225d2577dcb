"""AsyncAPI 3.0 document of a contract's events: channels, publishers, subscribers. Pure.

The body of an event is a protobuf message. The document has the schema of its proto3 JSON, which every tool reads.

Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, assert_never

from mesh.contract.model import ChangeTrigger, Contract, EventTrigger, EventType, ScheduleTrigger
from mesh.edge.openapi import comments
from mesh.edge.openapi.schemas import Schemas
from mesh.events.cloudevents import CONTENT_TYPE
from mesh.events.subjects import EVENTS, PARTITIONS, token_of

__all__ = ["document"]

_DESCRIPTION = """\
Events are [CloudEvents 1.0](https://cloudevents.io) in binary mode on NATS JetStream: the attributes are headers, the \
body is the serialised protobuf message. The schemas show its proto3 JSON.

Events of one key are in order. Every event may arrive twice, with the same `ce-id`.\
"""

_TEXT = {"type": "string"}
_HEADERS = {
    "type": "object",
    "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "content-type", "Nats-Msg-Id"],
    "properties": {
        "ce-specversion": {"type": "string", "const": "1.0"},
        "ce-id": {**_TEXT, "description": "Unique for ever."},
        "ce-source": {**_TEXT, "description": "The service that published it."},
        "ce-time": {"type": "string", "format": "date-time"},
        "ce-subject": {**_TEXT, "description": "The key; percent-encoded, as every attribute is."},
        "ce-traceparent": {**_TEXT, "description": "The span that published it (W3C Trace Context)."},
        "ce-tracestate": _TEXT,
        "content-type": {"type": "string", "const": CONTENT_TYPE},
        "Nats-Msg-Id": {**_TEXT, "description": "`ce-id`: JetStream stores it once."},
        "mesh-hops": {"type": "string", "pattern": "^[0-9]+$", "description": "Deliveries in a row that led to it."},
    },
}
_PARAMETERS = {
    "partition": {"enum": [str(part) for part in range(PARTITIONS)], "description": "CRC-32 of the key, modulo."},
    "key": {"description": "The key, percent-encoded with its dots; `_` when there is none."},
}


def document(contract: Contract, *, title: str, version: str = "") -> dict[str, Any]:
    """Return the document of every event of the contract, as JSON values.

    Args:
        contract: The contract.
        title: What the API is called.
        version: Its version; ``""``: a digest of the contract, which changes with the contract.
    """
    schemas = Schemas(contract.pool, comments.read(contract.files))
    messages = {event.name: _message(event, schemas) for event in contract.events.values()}
    digest = hashlib.sha256(contract.files.SerializeToString(deterministic=True)).hexdigest()[:12]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version or digest, "description": _DESCRIPTION},
        "defaultContentType": CONTENT_TYPE,
        "channels": {event.name: _channel(event) for event in contract.events.values()},
        "operations": dict(_operations(contract)),
        "components": {
            "messages": messages,
            "messageTraits": {"cloudEvent": {"headers": _HEADERS}},
            "schemas": dict(sorted(schemas.components.items())),
        },
    }


def _channel(event: EventType) -> dict[str, Any]:
    return {
        "address": f"{EVENTS}.{token_of(event.name)}.{{partition}}.{{key}}",
        "description": f"In the order of `{event.key}`." if event.key else "In no order.",
        "parameters": _PARAMETERS,
        "messages": {event.name: {"$ref": f"#/components/messages/{event.name}"}},
    }


def _message(event: EventType, schemas: Schemas) -> dict[str, Any]:
    descriptor: Any = event.message.DESCRIPTOR
    said = schemas.message_comment(descriptor)
    return {
        "name": event.name,
        "title": descriptor.name,
        **({"description": said} if said else {}),
        "contentType": CONTENT_TYPE,
        "traits": [{"$ref": "#/components/messageTraits/cloudEvent"}],
        "payload": schemas.message(descriptor),
    }


def _operations(contract: Contract) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the operations of services: they send the events that they publish, and receive those of triggers."""
    for service in contract.services.values():
        for name in service.publishes:
            yield f"{service.name}.publish.{name}", _operation("send", name, service.comment)
        for method in service.methods.values():
            for trigger in method.triggers:
                match trigger:
                    case EventTrigger(event):
                        yield f"{service.name}.{method.name}", _operation("receive", event, method.comment)
                    case ScheduleTrigger() | ChangeTrigger():
                        pass
                    case _:
                        assert_never(trigger)


def _operation(action: str, event: str, said: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{event}"},
        **({"description": said} if said else {}),
        "messages": [{"$ref": f"#/channels/{event}/messages/{event}"}],
    }
