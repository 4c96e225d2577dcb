"""Streams of a mesh, made and updated by the first replica that connects.

A stream that exists with other settings is updated. A change that the server refuses is reported with the server's
reason. A stream is never deleted to make it anew.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from mesh.events import subjects
from mesh.events.broker.nats_connection import DeniedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["CHANGES", "DEAD", "EVENTS", "SCHEDULES", "TRIES", "Retention", "StreamError", "configs", "ensure"]

log = logging.getLogger("mesh.events")

EVENTS, CHANGES, SCHEDULES, DEAD, TRIES = "EVENTS", "CHANGES", "SCHEDULES", "DEAD", "TRIES"
"""Names of the streams."""
DUPLICATE_WINDOW_SECONDS = 120.0
"""Seconds for which JetStream remembers message ids, to drop the copies that a relay publishes again after a crash."""


_NOT_FOUND = 10059
"""JetStream's error code for a stream that does not exist."""


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


async def ensure(connection: NatsConnection, retention: Retention) -> None:
    """Make every stream, or update its settings; any number of replicas may do it concurrently.

    A service with the rights of ``mesh.events.rights`` may make a stream, and not update one. It uses the stream as it
    is, and logs the difference.

    Raises:
        StreamError: The server refuses one; the text has its reason.
        nats.errors.Error: The server is away.
    """
    for wanted in configs(retention):
        name, body = wanted.name or "", wanted.as_dict()
        found = await connection.request(f"STREAM.INFO.{name}")
        if found.get("error", {}).get("err_code") == _NOT_FOUND:
            # A second one with the same settings, by another replica, is no error.
            found = await connection.request(f"STREAM.CREATE.{name}", body)
        elif "error" not in found:
            other = list(_differences(StreamConfig.from_response(found["config"]), wanted))
            if other:
                try:
                    found = await connection.request(f"STREAM.UPDATE.{name}", body)
                except DeniedError:
                    log.warning(
                        "the stream %s has other settings than [events] of mesh.toml (%s), and this service may not "
                        "change them; `mesh events streams` does",
                        name, ", ".join(other),
                    )  # fmt: skip
        error = found.get("error")
        if error is not None:
            raise StreamError(f"stream {name}: {error.get('description', error)}")


def _differences(found: StreamConfig, wanted: StreamConfig) -> Iterator[str]:
    """Yield the settings of ``wanted`` that the stream does not have; others stay as the server made them."""
    is_, should = found.as_dict(), wanted.as_dict()
    for name, value in should.items():
        if is_.get(name) != value:
            yield name
