"""Events that a handler gets: the verified user in API Gateway's events, and those of triggers other than HTTP.

A schedule and a published event come in the shape of EventBridge: ``detail-type`` says what, ``detail`` holds it.

Sources: https://docs.aws.amazon.com/eventbridge/latest/ref/overiew-event-structure.html; API Gateway developer guide,
"Working with AWS Lambda proxy integrations for HTTP APIs" (``requestContext.authorizer``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mesh.lambdas.lambda_context import ACCOUNT, identifier

if TYPE_CHECKING:
    from mesh.call import Identity, Metadata

__all__ = ["Headers", "Origin", "origin", "published", "received", "scheduled"]


class Headers(dict[str, Any]):
    """The headers of an event, in lower case; looked up in any case.

    REST APIs hand on the case that the client wrote, HTTP/2 knows lower case only: a handler that asks for
    ``Authorization`` and one that asks for ``authorization`` both find it.
    """

    def __missing__(self, key: object) -> Any:
        if isinstance(key, str) and super().__contains__(key.lower()):
            return super().__getitem__(key.lower())
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and super().__contains__(key.lower()))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a header, or ``default``."""
        return self[key] if key in self else default  # noqa: SIM401 - this is it


def received(event: Any, identity: Identity | None, *, trusted: bool) -> Any:
    """Return the event with what a handler may believe of the user.

    ``requestContext.authorizer`` is the user that was verified here, whatever the caller wrote there: who could reach
    the function directly could otherwise be anyone. A service of the mesh may say it.

    Args:
        event: The event as it came; changed.
        identity: The verified user, or None.
        trusted: The caller is a service of the mesh.
    """
    context = event.get("requestContext") if type(event) is dict else None
    if type(context) is not dict:
        return event
    second = event.get("version") == "2.0"
    if not second:
        for name in ("headers", "multiValueHeaders"):
            if type(event.get(name)) is dict:
                event[name] = Headers(event[name])
    if identity is None:
        if not trusted:
            context.pop("authorizer", None)
        return event
    claims = dict(_claims(identity.claims))
    scopes = claims["scope"].split() if "scope" in claims else None
    known = {"claims": claims, "scopes": scopes}
    context["authorizer"] = {"jwt": known} if second else {**known, "principalId": identity.subject}
    return event


def _claims(claims: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the claims as API Gateway gives them: as text, a list in brackets."""
    for name, value in claims.items():
        yield name, f"[{' '.join(map(_text, value))}]" if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Origin:
    """Which event it is, and from where.

    Attributes:
        id: The event's id, the same each time that it is delivered.
        time: When it happened (RFC 3339, whole seconds, UTC).
        region: The AWS region that the function believes to be in.
    """

    id: str
    time: str
    region: str


def origin(metadata: Metadata, region: str) -> Origin:
    """Return the origin that a delivery's metadata says (``ce-id``, ``ce-time``: CloudEvents).

    A call by hand comes without; it is an event of its own, and happens now.
    """
    said = metadata.wire(b"ce-time") or b""
    try:
        time = datetime.fromisoformat(said.decode("latin-1")).astimezone(UTC)
    except ValueError:
        time = datetime.now(UTC)
    return Origin(
        (metadata.wire(b"ce-id") or b"").decode("latin-1") or identifier(), f"{time:%Y-%m-%dT%H:%M:%SZ}", region
    )


def scheduled(rule: str, due: str, origin: Origin) -> dict[str, Any]:
    """Return the event of a schedule.

    Args:
        rule: What names the schedule.
        due: When it was due (RFC 3339), or ``""``.
        origin: Which event it is.
    """
    return _bridge("Scheduled Event", "aws.events", due or origin.time, {}, [rule], origin)


def published(name: str, detail: Any, origin: Origin) -> dict[str, Any]:
    """Return the event of a published event.

    Args:
        name: Full name of its message.
        detail: The message as JSON.
        origin: Which event it is.
    """
    return _bridge(name, name.rpartition(".")[0], origin.time, detail, [], origin)


def _bridge(kind: str, source: str, time: str, detail: Any, resources: list[str], origin: Origin) -> dict[str, Any]:
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
