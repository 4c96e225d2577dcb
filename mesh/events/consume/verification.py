"""Verification of deliveries: whether the signer of a message may have published it. Its refusals are dead letters.

A message reaches a function only if

- its signature fits its subject, attributes and body;
- it was stored on the subject of the trigger by the service that is its source, and the contract lets this service
  publish the type. Changes are signed by the service that owns the table, ticks by the service with the schedule;
- or an operator signed it, who may publish any event, and is the only one who redrives and replays.

The broker's rights (``mesh.events.rights``) refuse the same earlier. This check holds when the broker is shared,
misconfigured or taken over.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from mesh.contract.model import ChangeTrigger, EventTrigger, ScheduleTrigger
from mesh.events.signatures import OPERATOR, SIGNATURE, SignatureError, SignedMessage, Verifier

if TYPE_CHECKING:
    from mesh.events.broker.message import Message
    from mesh.events.cloudevents import Event
    from mesh.events.consume.consumers import Consumer

__all__ = ["EventVerifier", "RefusedError", "UnsignedPolicy"]

log = logging.getLogger(__name__)

CHANGE = "meshapi.v1.Change"


class RefusedError(Exception):
    """A message may not be delivered; the text says why."""


@dataclass(frozen=True, slots=True)
class UnsignedPolicy:
    """Messages that are accepted without a signature.

    Attributes:
        before: Messages that the broker stored before this time, seconds since the epoch; 0: none.
        sources: Values of ``ce-source`` of other programs that publish without signatures.
    """

    before: float = 0.0
    sources: Collection[str] = field(default_factory=frozenset)


class EventVerifier:
    """Verifier of deliveries.

    Args:
        verifier: Verifies signatures.
        publishers: Full name of an event → names in mesh.toml of the services that may publish it.
        hosts: Full name of a gRPC service → name in mesh.toml of the service that hosts it.
        unsigned: Messages that are accepted without a signature.
    """

    def __init__(
        self,
        verifier: Verifier,
        publishers: Mapping[str, Collection[str]],
        hosts: Mapping[str, str],
        unsigned: UnsignedPolicy,
    ) -> None:
        self._verifier = verifier
        self._publishers = publishers
        self._hosts = hosts
        self._unsigned = unsigned
        self._has_warned = False

    def check(self, consumer: Consumer, message: Message, event: Event) -> None:
        """Check a message that the broker delivers.

        Args:
            consumer: The consumer that received it.
            message: The message.
            event: The event that was read from it.

        Raises:
            RefusedError: It may not be delivered.
        """
        if SIGNATURE not in message.headers and self._accepted_unsigned(message, event):
            signer = ""
        else:
            try:
                signer = self._verifier.verify(
                    SignedMessage(message.subject, message.headers, message.data), message.time
                )
            except SignatureError as error:
                if SIGNATURE not in message.headers:
                    self._warn_once()
                raise RefusedError(str(error)) from None
        if signer != OPERATOR and not message.subject.startswith(consumer.filters[0].removesuffix("*")):
            raise RefusedError(f"only an operator may redrive or replay; {signer or 'nobody'} signed it")
        self._check_trigger(consumer, event, signer)

    def _warn_once(self) -> None:
        """Say what to do after an upgrade, when the broker holds events of a version that signed none."""
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "the broker holds events without a signature; they become dead letters. If an earlier version "
                "published them, `[events] signed_since` accepts those that are left, and "
                "`mesh events dead redrive --all --unsigned` delivers the dead letters"
            )

    def _accepted_unsigned(self, message: Message, event: Event) -> bool:
        return message.time < self._unsigned.before or event.source in self._unsigned.sources

    def _check_trigger(self, consumer: Consumer, event: Event, signer: str) -> None:
        """Check that the event is what the trigger names, and that the signer may publish it."""
        trigger = consumer.trigger
        match trigger:
            case EventTrigger(wanted):
                if event.type != wanted:
                    raise RefusedError(f"it is a {event.type[:80]}, on the subject of {wanted}")
                self._check_publisher(event, signer)
            case ChangeTrigger(service, _):
                if event.type != CHANGE or event.source != service:
                    raise RefusedError(f"it is a {event.type[:80]} of {event.source[:80]!r}, no change of {service}")
                _check_owner("change", service, signer)
            case ScheduleTrigger():
                _check_owner("tick", self._hosts.get(consumer.method.service, ""), signer)
            case _:
                assert_never(trigger)

    def _check_publisher(self, event: Event, signer: str) -> None:
        if signer in ("", OPERATOR):
            return
        if signer != event.source:
            raise RefusedError(f"its source is {event.source[:80]!r}, and {signer} signed it")
        if signer not in self._publishers.get(event.type, ()):
            raise RefusedError(f"the contract does not let {signer} publish {event.type}")


def _check_owner(kind: str, owner: str, signer: str) -> None:
    if signer not in ("", OPERATOR, owner):
        raise RefusedError(f"it is a {kind} of {owner}, and {signer} signed it")
