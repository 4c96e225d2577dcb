"""A delivery as a call: the sidecar's own chain answers it like any other.

What is different is where it comes from. Nobody calls over the network, so there is nobody to authenticate: that the
contract declares the trigger is the permission. The trace is a new one, *linked* to the span that published the event:
a delivery may come hours later, and ten functions may be called for one event.

Attributes of spans: OpenTelemetry semantic conventions for messaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace

from mesh.call import Call, Handler, Metadata
from mesh.errors import StatusError, Unimplemented
from mesh.layers.recover import status_of
from mesh.text import text_of
from mesh.trace_context import parse_span_context

if TYPE_CHECKING:
    from mesh.contract.model import Method
    from mesh.events.cloudevents import Event

__all__ = ["AlreadyDoneError", "Arrival", "Delivered", "linked", "once"]


class AlreadyDoneError(Exception):
    """The event has had its effect; nothing of this delivery may be written (``mesh.events.consume.inbox``)."""


@dataclass(slots=True, eq=False)
class Delivered:
    """What of a delivery goes where its function runs, in the sidecar's process or in a worker: ``Call.delivery``.

    Attributes:
        consumer: What the event must have its effect once for: the method, ``package.Service/Method``.
        event: The event's id.
        hops: Deliveries in a row that led to the event.
        wrote: The function has a transaction that writes, or has committed one.
    """

    consumer: str
    event: str
    hops: int
    wrote: bool = False


class Arrival(Call):
    """One delivery of one event.

    Attributes:
        event: The event.
        delivery: What its function's side knows of it.
        tries: Which try it is, from 1.
        known: What the try before ended with, if its traceback is in the log; else "".
        failure: The same of this one.
        trace: The trace id of the call, 32 hexadecimal digits, once it has begun; else "".
        began: The function was called.
        beside: The worker that ran the function ended, and another call there may be why.
    """

    __slots__ = ("_data", "began", "beside", "delivery", "event", "failure", "known", "trace", "tries")

    def __init__(
        self, method: Method, event: Event, consumer: str, tries: int, deadline: float | None, known: str = ""
    ) -> None:
        told = {
            "ce-id": event.id,
            "ce-source": event.source,
            "ce-type": event.type,
            "ce-time": event.time.isoformat(),
            "ce-subject": event.key,
            "mesh-hops": str(event.hops),
        }
        pairs = [(name.encode(), value.encode()) for name, value in told.items() if value]
        super().__init__(method, Metadata.from_wire(pairs), deadline)
        self.event = event
        self.delivery = Delivered(consumer, event.id, event.hops)
        self.tries = tries
        self.known = known
        self.failure = ""
        self.trace = ""
        self.began = False
        self.beside = False
        self._data: bytes | None = event.data

    async def receive(self) -> bytes | None:
        """Return the event, then None."""
        data, self._data = self._data, None
        return data

    async def send(self, message: bytes) -> None:
        """Take the answer, which nobody waits for."""

    async def send_headers(self) -> None:
        """Take the headers, which nobody waits for.

        Raises:
            Unimplemented: Always: only a method that streams its answer sends them early, and such have no triggers.
        """
        raise Unimplemented("a delivery has no one to send headers to")


async def linked(call: Call, next: Handler) -> None:
    """The layer that says in the trace of a delivery which event it is of, and links it to its publisher."""
    assert isinstance(call, Arrival)  # noqa: S101 - only deliveries come this way
    span = trace.get_current_span()
    context = span.get_span_context()
    if context.is_valid:
        call.trace = f"{context.trace_id:032x}"
    if span.is_recording():
        event = call.event
        told: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.operation.type": "process",
            "messaging.message.id": event.id,
            "messaging.destination.name": event.type,
            "messaging.consumer.group.name": call.delivery.consumer,
        }
        if call.tries > 1:
            told["mesh.event.tries"] = call.tries
        span.set_attributes(told)
        origin = parse_span_context(event.traceparent, event.tracestate)
        if origin is not None:
            span.add_link(origin, {"messaging.message.id": event.id})
    await next(call)


async def once(call: Call, next: Handler) -> None:
    """The innermost layer of a delivery: the function begins; an event that has had its effect already ends well.

    A function that fails as it did in the try before is not told of once more with its traceback.
    """
    if isinstance(call, Arrival):  # else it is in a worker, and the sidecar has the arrival
        call.began = True
    try:
        await next(call)
    except AlreadyDoneError:
        return
    except StatusError:
        raise
    except Exception as error:
        if not isinstance(call, Arrival):
            raise
        call.failure = f"{type(error).__name__}: {' '.join(text_of(error).split())}"
        if call.failure == call.known:
            raise status_of(error) from error
        raise
