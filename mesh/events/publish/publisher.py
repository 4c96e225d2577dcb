"""Publisher: makes events of messages and publishes them, if the contract lets the service publish their type."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace

from mesh.call import current
from mesh.errors import FailedPrecondition, InvalidArgument
from mesh.events.cloudevents import Event, new_id
from mesh.events.hops import hops
from mesh.message_methods import descriptor_of, serialize
from mesh.rules.message_checks import event_check
from mesh.trace_context import format_traceparent

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from opentelemetry.trace import Span

    from mesh.contract.model import Contract

__all__ = ["MAX_EVENT_SIZE", "MAX_KEY_SIZE", "Publications", "Publisher", "key_of"]

MAX_EVENT_SIZE = 900_000
"""Maximum bytes of an event. A broker with default settings takes messages of 1 MiB, headers and key included."""
MAX_KEY_SIZE = 1024
"""Maximum bytes of an event's key in UTF-8. Percent-encoded in a header it may be three times as long."""


class Publications:
    """Events that one service may publish.

    Args:
        contract: The contract.
        serves: Full names of the services of the contract that it hosts.
        source: Its name in mesh.toml.

    Attributes:
        captures: Changes of its tables trigger methods.

    Raises:
        Faults: A rule of an event cannot be compiled.
    """

    def __init__(self, contract: Contract, serves: Sequence[str], source: str) -> None:
        declared = {name for service in serves for name in contract.services[service].publishes}
        self._keys = {name: contract.events[name].key for name in declared}
        checks = {name: event_check(contract.events[name].message) for name in declared}
        self._checks = {name: check for name, check in checks.items() if check is not None}
        self._known = frozenset(contract.events)
        self.captures = bool(contract.captured_tables(source))
        self._source = source
        self._serves = " or ".join(serves)
        self._tracer = trace.get_tracer("mesh.events")

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._keys)

    def span(self, message: Message) -> Any:
        """Return the span of a publication, to be entered (OpenTelemetry semantic conventions for messaging)."""
        name = descriptor_of(message).full_name
        return self._tracer.start_as_current_span(
            f"publish {name}",
            kind=trace.SpanKind.PRODUCER,
            attributes={
                "messaging.system": "nats",
                "messaging.operation.type": "send",
                "messaging.operation.name": "publish",
                "messaging.destination.name": name,
            },
        )

    def event(self, message: Message, span: Span) -> Event:
        """Return the event of a message that the current call publishes now.

        Args:
            message: The message.
            span: The span of its publication, to which deliveries are linked.

        Raises:
            FailedPrecondition: The contract does not let this service publish it.
            InvalidArgument: The message violates a rule of the contract, or it or its key is too large.
        """
        name = descriptor_of(message).full_name
        field = self._keys.get(name)
        if field is None:
            raise FailedPrecondition(self._denied(name))
        check = self._checks.get(name)
        if check is not None:
            check(message)
        data = serialize(message)
        if len(data) > MAX_EVENT_SIZE:
            raise InvalidArgument(
                f"{name} was not published: it has {len(data)} bytes, an event at most {MAX_EVENT_SIZE}; "
                "store what is large and publish where it is"
            )
        key = key_of(message, field)
        id_ = new_id()
        context = span.get_span_context()
        span.set_attribute("messaging.message.id", id_)
        traceparent = format_traceparent(context.trace_id, context.span_id, context.trace_flags)
        return Event(
            id=id_,
            type=name,
            source=self._source,
            key=key,
            time=datetime.now(UTC),
            data=data,
            traceparent=traceparent.decode() if context.is_valid else "",
            tracestate=context.trace_state.to_header() if context.is_valid else "",
            hops=hops(current.get()),
        )

    def _denied(self, name: str) -> str:
        if name not in self._known:
            return f"{name} was not published: it is no event; give the message option (meshapi.v1.event) = {{}}"
        return f"{name} was not published: {self._serves} does not declare it; add publishes: {name!r} to its options"


class _Broker(Protocol):
    """Broker of a publisher: ``mesh.events.broker.broker.Broker``, or the connection to it from a worker."""

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when the broker has it on its disk."""


class Publisher:
    """Publisher of events that belong to no transaction: ``context.publish``.

    Args:
        publications: The events that the service may publish.
        broker: The broker.
    """

    def __init__(self, publications: Publications, broker: _Broker) -> None:
        self._publications = publications
        self._broker = broker

    async def publish(self, message: Message) -> None:
        """Publish an event; returns when the broker has it on its disk.

        Raises:
            FailedPrecondition: The contract does not let this service publish it.
            InvalidArgument: The event violates a rule, or is too large.
            Unavailable: The broker is away, or did not respond; then it may have the event nevertheless.
            ResourceExhausted: The broker is full.
        """
        with self._publications.span(message) as span:
            await self._broker.publish(self._publications.event(message, span))


def key_of(message: Message, field: str) -> str:
    """Return the key of an event: its field's value as text, or "" when the contract names no field.

    Raises:
        InvalidArgument: The key is too long.
    """
    if not field:
        return ""
    key = _text(getattr(message, field))
    length = len(key.encode())
    if length > MAX_KEY_SIZE:
        name = descriptor_of(message).full_name
        raise InvalidArgument(
            f"{name} was not published: its key, {field}, has {length} bytes, a key at most {MAX_KEY_SIZE}"
        )
    return key


def _text(value: Any) -> str:
    """Return a scalar field's value as a key."""
    if isinstance(value, bytes):
        return value.hex()
    return str(value).lower() if isinstance(value, bool) else str(value)
