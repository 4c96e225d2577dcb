"""Rights of each component at the broker, from the contract: subjects that it may publish on and subscribe to. Pure.

A service may store its own events, changes, ticks, schedules, attempt records and dead letters, and call JetStream's
API for the five streams and its own consumers. It may create a missing stream and read the settings of a stream, but
not update, purge or delete one. The name of a consumer is in the subject of each API call, so no service reads,
acknowledges or deletes the consumers of another one. Responses come to an inbox that only this service may subscribe
to.

The rights do not cover the body of an API call: a service can create a consumer under a name of its own that reads
events of other types. They stop forgery and destruction, not reading.

Sources: subjects of JetStream's API, https://docs.nats.io/reference/reference-protocols/nats_api_reference; the form of
acknowledgements, NATS ADR-15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.contract.model import ScheduleTrigger
from mesh.events import subjects
from mesh.events.broker import streams
from mesh.events.broker.broker import inbox_of
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.delivery import replica_channel

if TYPE_CHECKING:
    from mesh.contract.model import Contract

__all__ = ["EVERYTHING", "Rights", "service_rights"]

STREAMS = (streams.EVENTS, streams.CHANGES, streams.SCHEDULES, streams.DEAD, streams.TRIES)


@dataclass(frozen=True, slots=True)
class Rights:
    """Rights of one user of the broker.

    Attributes:
        publish: Subjects that it may publish on, with wildcards.
        subscribe: Subjects that it may subscribe to, with wildcards.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


EVERYTHING = Rights((">",), (">",))
"""Rights of the operator: ``mesh up``, ``mesh events``, ``mesh chaos``."""


def service_rights(contract: Contract, name: str, serves: Sequence[str]) -> Rights:
    """Return the rights of one service.

    Args:
        contract: The contract.
        name: The service's name in mesh.toml.
        serves: Full names of the gRPC services that it hosts; names that the contract does not have are ignored.
    """
    subscribe = (f"{inbox_of(name)}.>", replica_channel(name))
    return Rights(tuple(dict.fromkeys(_publish(contract, name, serves))), subscribe)


def _publish(contract: Contract, name: str, serves: Sequence[str]) -> Iterator[str]:
    served = [contract.services[one] for one in serves if one in contract.services]
    published = {event for service in served for event in service.publishes}
    tables = contract.captured_tables(name)
    yield from (subjects.event_filter(event) for event in sorted(published))
    yield from (subjects.change_filter(name, table) for table in tables)
    # A dead letter of an event that no broker takes goes to the methods that would have been called.
    sources = {subjects.event_filter(event, 0) for event in published}
    sources |= {subjects.change_filter(name, table, 0) for table in tables}
    for one in consumers_of(contract.services.values()):
        if one.filters[0] in sources:
            yield subjects.dead_subject(one.method.service, one.method.name)
    yield replica_channel(name)
    for service in served:
        triggers = [trigger for method in service.methods.values() for trigger in method.triggers]
        if any(isinstance(trigger, ScheduleTrigger) for trigger in triggers):
            token = subjects.token_of(service.name)
            yield f"{subjects.SCHEDULES}.{token}.>"
            yield f"{subjects.TICKS}.{token}.>"
    for stream in STREAMS:
        yield f"$JS.API.STREAM.INFO.{stream}"
        yield f"$JS.API.STREAM.CREATE.{stream}"
    own = consumers_of(served)
    if own:
        yield f"$JS.API.STREAM.MSG.GET.{streams.TRIES}"
        yield f"$JS.API.STREAM.MSG.GET.{streams.SCHEDULES}"
    for one in own:
        consumer = f"{one.stream}.{one.name}"
        yield subjects.dead_subject(one.method.service, one.method.name)
        yield f"{subjects.TRIES}.{one.name}.*"
        for operation in ("INFO", "CREATE", "MSG.NEXT", "UNPIN"):
            yield f"$JS.API.CONSUMER.{operation}.{consumer}"
        yield f"$JS.ACK.{consumer}.>"
        yield f"$JS.ACK.*.*.{consumer}.>"  # of a server with a domain
