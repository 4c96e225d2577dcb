"""An event that a function publishes by itself, on its way from the worker to the broker: a call of the sidecar.

The worker makes the event, so its span, its hops and what the contract denies are those of the function's own call. The
sidecar has the connection, and answers when the broker has the event on its disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty

from mesh.call import Call, Handler, Metadata
from mesh.contract.model import Method
from mesh.errors import Unavailable
from mesh.events.cloudevents import Event
from mesh.sidecar.workers.call_headers import decoder, encode

if TYPE_CHECKING:
    from mesh.sidecar.workers.worker_connection import Link

__all__ = ["METHOD", "PUBLISH", "Passage", "answering"]

PUBLISH = 1
"""The method's number in an OPEN frame of a worker's; 0 are the calls of stubs."""
METHOD = Method("Publish", "", "publish", Empty, Empty)
_event = decoder(Event)


class Passage:
    """The broker, as a worker reaches it.

    Args:
        link: To the sidecar.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when the broker has it on its disk.

        Raises:
            StatusError: As for ``mesh.events.broker.broker.Broker.publish``.
            Unavailable: The sidecar is gone; the broker may have the event all the same.
        """
        try:
            await self._link.ask(Call(METHOD, Metadata()), PUBLISH, b"", encode(event))
        except ConnectionError:
            raise Unavailable("the sidecar of this worker is gone") from None


def answering(publish: Callable[[Event], Awaitable[None]]) -> Handler:
    """Return what answers such a call in the sidecar."""

    async def answer(call: Call) -> None:
        await publish(_event(await call.receive_one()))

    return answer
