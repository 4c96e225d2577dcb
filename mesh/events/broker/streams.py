"""Streams of a mesh, made and updated by the first replica that connects.

A stream that exists with other settings is updated. A change that the server refuses is reported with the server's
reason. A stream is never deleted to make it anew.
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
DUPLICATE_WINDOW_SECONDS = 120.0
"""Seconds for which JetStream remembers message ids, to drop the copies that a relay publishes again after a crash."""


class StreamError(Exception):
    """A stream cannot be made or updated; the text names it and the reason."""


ATTEMPTS_AGE = 86400.0
"""Seconds for which attempt records are kept (``mesh.events.consume.attempts``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Retention of the streams.

    Attributes:
        age: Seconds that events and changes are kept; 0: without limit.
        dead: Seconds that dead letters are kept; 0: without limit.
        size: Maximum bytes of each stream; 0: as many as the broker has space for.
        replicas: Number of servers of the broker's cluster that store each message.
    """

    age: float = 7 * 86400.0
    dead: float = 30 * 86400.0
    size: int = 0
    replicas: int = 1


def configs(retention: Retention) -> list[StreamConfig]:
    """Return the settings of every stream."""

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
            duplicate_window=min(DUPLICATE_WINDOW_SECONDS, age or DUPLICATE_WINDOW_SECONDS),
            **settings,
        )

    return [
        stream(EVENTS, subjects.EVENTS, age=retention.age),
        stream(CHANGES, subjects.CHANGES, age=retention.age),
        # No limit of age or size: a schedule that the stream dropped would never fire again. Ticks have their own age.
        # The server refuses "discard new" here: "message scheduling cannot use discard new".
        stream(
            SCHEDULES, subjects.SCHEDULES, subjects.TICKS, age=0.0, max_bytes=-1, discard=DiscardPolicy.OLD,
            allow_msg_schedules=True, allow_msg_ttl=True, allow_rollup_hdrs=True,
        ),
        stream(DEAD, subjects.DEAD, age=retention.dead),
        stream(TRIES, subjects.TRIES, age=ATTEMPTS_AGE, max_msgs_per_subject=1, discard=DiscardPolicy.OLD),
    ]  # fmt: skip


async def ensure(js: JetStreamContext, retention: Retention) -> None:
    """Make every stream, or update its settings; any number of replicas may do it concurrently.

    Raises:
        StreamError: The server refuses one; the text has its reason.
        nats.errors.Error: The server is away.
    """
    for wanted in configs(retention):
        name = wanted.name or ""
        try:
            try:
                found = (await js.stream_info(name)).config
            except NotFoundError:
                await js.add_stream(wanted)  # a second one with the same settings, by another replica, is no error
                continue
            if list(_differences(found, wanted)):
                await js.update_stream(wanted)
        except APIError as error:
            raise StreamError(f"stream {name}: {error.description or error}") from error


def _differences(found: StreamConfig, wanted: StreamConfig) -> Iterator[str]:
    """Yield the settings of ``wanted`` that the stream does not have; others stay as the server made them."""
    is_, should = found.as_dict(), wanted.as_dict()
    for name, value in should.items():
        if is_.get(name) != value:
            yield name
