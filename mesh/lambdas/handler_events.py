"""Handler events: the verified user in API Gateway events, and EventBridge events of schedules and publications.

A schedule and a published event have the form of EventBridge: ``detail-type`` is the kind, ``detail`` the content.

Sources: https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html; API Gateway developer guide,
"Working with AWS Lambda proxy integrations for HTTP APIs" (``requestContext.authorizer``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mesh.lambdas.lambda_context import ACCOUNT, new_request_id

if TYPE_CHECKING:
    from mesh.call import Identity, Metadata

__all__ = ["EventHeaders", "EventOrigin", "event_origin", "published_event", "scheduled_event", "with_verified_user"]


class EventHeaders(dict[str, Any]):
    """Headers of an event: keys in lower case, lookups in any case.

    REST APIs pass on the client's case, and HTTP/2 has lower case only. So a handler finds a header as
    ``Authorization`` and as ``authorization``.
    """

    def __missing__(self, key: object) -> Any:
        if isinstance(key, str) and super().__contains__(key.lower()):
            return super().__getitem__(key.lower())
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and super().__contains__(key.lower()))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a header, or ``default``."""
        return self[key] if key in self else default  # noqa: SIM401 - this method is ``dict.get``


def with_verified_user(event: Any, identity: Identity | None, *, trusted: bool) -> Any:
    """Return the event with the verified user in ``requestContext.authorizer``.

    The user in the caller's event is replaced or removed. Else a caller that reaches the function directly could
    pretend to be anyone. Only a service of the mesh may set it.

    Args:
        event: The event of the request. It is changed in place.
        identity: The verified user, or None.
        trusted: Whether the caller is a service of the mesh.
    """
    context = event.get("requestContext") if type(event) is dict else None
    if type(context) is not dict:
        return event
    version_2 = event.get("version") == "2.0"
    if not version_2:
        for name in ("headers", "multiValueHeaders"):
            if type(event.get(name)) is dict:
                event[name] = EventHeaders(event[name])
    if identity is None:
        if not trusted:
            context.pop("authorizer", None)
        return event
    claims = dict(_claims(identity.claims))
    scopes = claims["scope"].split() if "scope" in claims else None
    known = {"claims": claims, "scopes": scopes}
    context["authorizer"] = {"jwt": known} if version_2 else {**known, "principalId": identity.subject}
    return event


def _claims(claims: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the claims in API Gateway's form: as text, lists in brackets."""
    for name, value in claims.items():
        yield name, f"[{' '.join(map(_text, value))}]" if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class EventOrigin:
    """Id, time and region of an event.

    Attributes:
        id: The event's id, the same for each delivery.
        time: Time of the event (RFC 3339, whole seconds, UTC).
        region: The function's configured AWS region.
    """

    id: str
    time: str
    region: str


def event_origin(metadata: Metadata, region: str) -> EventOrigin:
    """Return the origin from a delivery's metadata (``ce-id``, ``ce-time``: CloudEvents).

    A call without them is an event with a new id and the present time.
    """
    time_header = metadata.wire(b"ce-time") or b""
    try:
        time = datetime.fromisoformat(time_header.decode("latin-1")).astimezone(UTC)
    except ValueError:
        time = datetime.now(UTC)
    return EventOrigin(
        (metadata.wire(b"ce-id") or b"").decode("latin-1") or new_request_id(), f"{time:%Y-%m-%dT%H:%M:%SZ}", region
    )


def scheduled_event(rule: str, due: str, origin: EventOrigin) -> dict[str, Any]:
    """Return the EventBridge event of a schedule.

    Args:
        rule: Name of the schedule.
        due: Scheduled time (RFC 3339), or ``""``.
        origin: Id, time and region.
    """
    return _eventbridge_event("Scheduled Event", "aws.events", due or origin.time, {}, [rule], origin)


def published_event(name: str, detail: Any, origin: EventOrigin) -> dict[str, Any]:
    """Return the EventBridge event of a published event.

    Args:
        name: Full name of its message.
        detail: The message as JSON.
        origin: Id, time and region.
    """
    return _eventbridge_event(name, name.rpartition(".")[0], origin.time, detail, [], origin)


def _eventbridge_event(
    kind: str, source: str, time: str, detail: Any, resources: list[str], origin: EventOrigin
) -> dict[str, Any]:
    return {
        "version": "0",
        "id": origin.id,
        "detail-type": kind,
        "source": source,
        "account": ACCOUNT,
        "time": time,
        "region": origin.region,
        "resources": resources,
        "detail": detail,
    }
