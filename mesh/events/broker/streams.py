"""The streams of a mesh, made and kept current by whichever replica comes first.

A stream that exists already with other settings is updated; what the server refuses to change is said, with its reason,
and never made by deleting what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from mesh.events import subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nats.js import JetStreamContext

__all__ = ["CHANGES", "DEAD", "EVENTS", "SCHEDULES", "TRIES", "Retention", "StreamError", "configs", "ensure"]

EVENTS, CHANGES, SCHEDULES, DEAD, TRIES = "EVENTS", "CHANGES", "SCHEDULES", "DEAD", "TRIES"
"""Names of the streams."""
DUPLICATES = 120.0
"""Seconds for which JetStream remembers message ids: what a relay sends again after a crash is dropped there."""


class StreamError(Exception):
    """A stream cannot be made or changed; the text says which one and why."""


REMEMBERED = 86400.0
"""Seconds for which the tries of an event are remembered (``mesh.events.consume.attempts``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much the streams keep.

    Attributes:
        age: Seconds that events and changes are kept; 0: for ever.
        dead: Seconds that dead letters are kept; 0: for ever.
        size: Bytes that each stream may hold; 0: as much as the broker has room for.
        replicas: Servers of the broker's cluster that hold each message.
    """

    age: float = 7 * 86400.0
    dead: float = 30 * 86400.0
    size: int = 0
    replicas: int = 1


def configs(retention: Retention) -> list[StreamConfig]:
    """Return what every stream should be."""

    def stream(name: str, *first: str, age: float, **others: Any) -> StreamConfig:
        settings = {"discard": DiscardPolicy.NEW, "max_bytes": retention.size or -1, **others}
        return StreamConfig(
            name=name,
            subjects=[f"{token}.>" for token in first],
            storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS,
            max_age=age,
            num_replicas=retention.replicas,
            allow_direct=True,
            allow_atomic=True,
            duplicate_window=min(DUPLICATES, age or DUPLICATES),
            **settings,
        )

    return [
        stream(EVENTS, subjects.EVENTS, age=retention.age),
        stream(CHANGES, subjects.CHANGES, age=retention.age),
        # Neither age nor size: a schedule that the stream forgot would never fire again. Ticks have their own age.
        # "message scheduling cannot use discard new", says the server.
        stream(
            SCHEDULES, subjects.SCHEDULES, subjects.TICKS, age=0.0, max_bytes=-1, discard=DiscardPolicy.OLD,
            allow_msg_schedules=True, allow_msg_ttl=True, allow_rollup_hdrs=True,
        ),
        stream(DEAD, subjects.DEAD, age=retention.dead),
        stream(TRIES, subjects.TRIES, age=REMEMBERED, max_msgs_per_subject=1, discard=DiscardPolicy.OLD),
    ]  # fmt: skip


async def ensure(js: JetStreamContext, retention: Retention) -> None:
    """Make every stream, or bring it to what it should be; any number of replicas may do it at once.

    Raises:
        StreamError: The server refuses one; with its reason.
        nats.errors.Error: The server is away.
    """
    for wanted in configs(retention):
        name = wanted.name or ""
        try:
            try:
                found = (await js.stream_info(name)).config
            except NotFoundError:
                await js.add_stream(wanted)  # the same again, by another replica, is no error
                continue
            if list(_differences(found, wanted)):
                await js.update_stream(wanted)
        except APIError as error:
            raise StreamError(f"stream {name}: {error.description or error}") from error


def _differences(found: StreamConfig, wanted: StreamConfig) -> Iterator[str]:
    """Yield what of ``wanted`` the stream is not; what is not ours to say stays as the server made it."""
    is_, should = found.as_dict(), wanted.as_dict()
    for name, value in should.items():
        if is_.get(name) != value:
            yield name
