"""Publish call: hands an event that a function publishes outside of a transaction from the worker to the sidecar.

The worker builds the event, so its span, its hops and the contract's permission are those of the function's own call.
The sidecar has the connection to the broker, and responds when the broker has stored the event on disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty

from mesh.call import Call, Handler, Metadata
from mesh.contract.model import Method
from mesh.errors import Unavailable
from mesh.events.cloudevents import Event
from mesh.sidecar.workers.frame_payloads import decoder, encode

if TYPE_CHECKING:
    from mesh.sidecar.workers.worker_connection import WorkerConnection

__all__ = ["PUBLISH_METHOD", "PUBLISH_METHOD_NUMBER", "BrokerProxy", "publish_handler"]

PUBLISH_METHOD_NUMBER = 1
"""The method's number in an OPEN frame of a worker; 0 means a call of a stub."""
PUBLISH_METHOD = Method("Publish", "", "publish", Empty, Empty)
_event = decoder(Event)


class BrokerProxy:
    """The broker, as a worker reaches it through the sidecar.

    Args:
        connection: To the sidecar.
    """

    def __init__(self, connection: WorkerConnection) -> None:
        self._connection = connection

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when the broker has stored it on disk.

        Raises:
            StatusError: As for ``mesh.events.broker.broker.Broker.publish``.
            Unavailable: The sidecar is gone; the broker may have the event all the same.
        """
        try:
            await self._connection.forward(Call(PUBLISH_METHOD, Metadata()), PUBLISH_METHOD_NUMBER, b"", encode(event))
        except ConnectionError:
            raise Unavailable("the sidecar of this worker is gone") from None


def publish_handler(publish: Callable[[Event], Awaitable[None]]) -> Handler:
    """Return the sidecar's handler of publish calls."""

    async def handle(call: Call) -> None:
        await publish(_event(await call.receive_one()))

    return handle
