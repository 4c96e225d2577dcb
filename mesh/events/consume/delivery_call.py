"""Delivery as a call: the sidecar's layers and the function handle it like any other call.

A delivery differs in its origin. No caller sends it over the network, so nobody is authenticated: the trigger that the
contract declares is the permission. The trace is a new one, *linked* to the span that published the event: a delivery
may come hours later, and ten functions may be called for one event.

Attributes of spans: OpenTelemetry semantic conventions for messaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace

from mesh.call import Call, Handler, Metadata
from mesh.errors import Unimplemented, is_own
from mesh.layers.recover import status_of
from mesh.text import text_of
from mesh.trace_context import parse_span_context

if TYPE_CHECKING:
    from mesh.contract.model import Method
    from mesh.events.cloudevents import Event

__all__ = ["AlreadyProcessedError", "Delivered", "DeliveryCall", "linked", "once"]


class AlreadyProcessedError(Exception):
    """The event was processed before; this delivery must not write anything (``mesh.events.consume.inbox``)."""


@dataclass(slots=True, eq=False)
class Delivered:
    """Data of a delivery in the process that runs the function, the sidecar or a worker: ``Call.delivery``.

    Attributes:
        consumer: The method, ``package.Service/Method``; the event has its effect once for each consumer.
        event: The event's id.
        hops: Consecutive deliveries that led to the event.
        wrote: The function has a transaction that writes, or has committed one.
    """

    consumer: str
    event: str
    hops: int
    wrote: bool = False


class DeliveryCall(Call):
    """One delivery of one event.

    Attributes:
        event: The event.
        delivery: The data that the function's process gets.
        attempt: Number of the attempt, from 1.
        logged_failure: Failure of the attempt before, if its traceback is in the log; else "".
        failure: Failure of this attempt; else "".
        trace: The trace id of the call, 32 hexadecimal digits, once it has started; else "".
        started: The function was called.
        worker_lost_with_others: The worker that ran the function ended, and another call there may be the cause.
    """

    __slots__ = (
        "_data",
        "attempt",
        "delivery",
        "event",
        "failure",
        "logged_failure",
        "started",
        "trace",
        "worker_lost_with_others",
    )

    def __init__(
        self,
        method: Method,
        event: Event,
        consumer: str,
        attempt: int,
        deadline: float | None,
        logged_failure: str = "",
    ) -> None:
        values = {
            "ce-id": event.id,
            "ce-source": event.source,
            "ce-type": event.type,
            "ce-time": event.time.isoformat(),
            "ce-subject": event.key,
            "mesh-hops": str(event.hops),
        }
        pairs = [(name.encode(), value.encode()) for name, value in values.items() if value]
        super().__init__(method, Metadata.from_wire(pairs), deadline)
        self.event = event
        self.delivery = Delivered(consumer, event.id, event.hops)
        self.attempt = attempt
        self.logged_failure = logged_failure
        self.failure = ""
        self.trace = ""
        self.started = False
        self.worker_lost_with_others = False
        self._data: bytes | None = event.data

    async def receive(self) -> bytes | None:
        """Return the event, then None."""
        data, self._data = self._data, None
        return data

    async def send(self, message: bytes) -> None:
        """Drop the response: nobody waits for it."""

    async def send_headers(self) -> None:
        """Refuse to send headers.

        Raises:
            Unimplemented: Always. Only a method that streams its response sends headers early, and such methods have no
                triggers.
        """
        raise Unimplemented("a delivery has no client to send headers to")


async def linked(call: Call, next: Handler) -> None:
    """Layer that puts the event into the span of a delivery, and links the span to that of the publisher."""
    assert isinstance(call, DeliveryCall)  # noqa: S101 - only deliveries pass this layer
    span = trace.get_current_span()
    context = span.get_span_context()
    if context.is_valid:
        call.trace = f"{context.trace_id:032x}"
    if span.is_recording():
        event = call.event
        attributes: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.operation.type": "process",
            "messaging.message.id": event.id,
            "messaging.destination.name": event.type,
            "messaging.consumer.group.name": call.delivery.consumer,
        }
        if call.attempt > 1:
            attributes["mesh.event.tries"] = call.attempt
        span.set_attributes(attributes)
        origin = parse_span_context(event.traceparent, event.tracestate)
        if origin is not None:
            span.add_link(origin, {"messaging.message.id": event.id})
    await next(call)


async def once(call: Call, next: Handler) -> None:
    """Innermost layer of a delivery: notes the start of the function; an event that was processed before succeeds.

    A function that fails in the same way as in the attempt before is not logged with its traceback again.
    """
    if isinstance(call, DeliveryCall):  # otherwise this is a worker, and the sidecar has the call of the delivery
        call.started = True
    try:
        await next(call)
    except AlreadyProcessedError:
        return
    except Exception as error:
        if is_own(error) or not isinstance(call, DeliveryCall):
            raise
        call.failure = f"{type(error).__name__}: {' '.join(text_of(error).split())}"
        if call.failure == call.logged_failure:
            raise status_of(error) from error
        raise
