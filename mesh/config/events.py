"""Table ``[events]`` and key ``broker`` of mesh.toml: connection to the event broker, and its retention."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from urllib.parse import urlsplit

import msgspec

from mesh.config.values import Duration, Size
from mesh.faults import Fault

__all__ = ["EventsConfig", "broker_faults", "events_faults"]

_DAY = 86400


class EventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[events]``: connection to the event broker, and its retention.

    Attributes:
        listen: ``host:port`` of the broker that ``mesh up`` runs if ``broker`` names none; port 0 selects a free port.
        user: User name at the broker; may be in the URL instead.
        password: Password of the user.
        token: Token, in place of user and password.
        credentials: ``.creds`` file (JWT and seed), relative to mesh.toml.
        nkey: File with an NKEY seed, relative to mesh.toml.
        ca: Trusted certificate authorities (PEM), relative to mesh.toml; ``""``: those of the system.
        certificate: Client certificate (PEM), if the broker requires one.
        private_key: Key of the client certificate (PEM).
        retention: Retention of events and changes; ``"0s"``: for ever.
        dead_retention: Retention of dead letters; ``"0s"``: for ever.
        max_bytes: Size limit of each stream. A full stream refuses events, and outboxes keep them. 0: no limit.
        replicas: Servers of the broker's cluster that store each message.
        max_deliveries: Attempts to deliver an event, after which it becomes a dead letter.
        signed_since: Time (RFC 3339) of the upgrade to signed events. Events that the broker stored before it are
            accepted without a signature; ``""``: none are.
        unsigned: ``ce-source`` of other programs, whose events are accepted without a signature.
        max_hops: Length of a chain of deliveries, each of an event published in the one before. A longer chain ends in
            a dead letter.
    """

    listen: str = "127.0.0.1:0"
    user: str = ""
    password: str = ""
    token: str = ""
    credentials: str = ""
    nkey: str = ""
    ca: str = ""
    certificate: str = ""
    private_key: str = ""
    retention: Duration = Duration(7 * _DAY)
    dead_retention: Duration = Duration(30 * _DAY)
    max_bytes: Size = Size(0)
    replicas: int = 1
    max_deliveries: int = 20
    max_hops: int = 16
    signed_since: str = ""
    unsigned: tuple[str, ...] = ()

    @property
    def signed_from(self) -> float:
        """``signed_since`` in seconds since the epoch; 0 when it is empty."""
        return datetime.fromisoformat(self.signed_since).timestamp() if self.signed_since else 0.0


def broker_faults(broker: str, place: str) -> Iterator[Fault]:
    """Check the URLs of ``broker``. A fault never shows a password."""
    for url in broker.split(",") if broker else ():
        try:
            parts = urlsplit(url.strip())
            right = parts.scheme in ("nats", "tls") and bool(parts.hostname) and not parts.path and parts.port != 0
        except ValueError:
            right = False
        if not right:
            yield Fault(place, "expected nats://HOST:PORT or tls://HOST:PORT, several with commas between them")


def events_faults(events: EventsConfig, place: str, components: Collection[str]) -> Iterator[Fault]:
    """Check the combination of values; ``components``: names of services and of the mesh's own components."""
    for name in events.unsigned:
        if name in components:
            yield Fault(f"{place} unsigned", f"{name!r} is of this mesh and signs its events; name other programs")
    methods = {"user": events.user, "token": events.token, "credentials": events.credentials, "nkey": events.nkey}
    given = [name for name, value in methods.items() if value]
    if len(given) > 1:
        yield Fault(f"{place} {given[1]}", f"{' and '.join(given)}: the broker accepts one authentication method")
    if bool(events.user) != bool(events.password):
        yield Fault(f"{place} user", "user and password belong together")
    if bool(events.certificate) != bool(events.private_key):
        yield Fault(f"{place} certificate", "certificate and private_key belong together")
    for name, value in (("max_deliveries", events.max_deliveries), ("max_hops", events.max_hops)):
        if value < 1:
            yield Fault(f"{place} {name}", f"must be at least 1, not {value}")
    if events.signed_since and not _is_time(events.signed_since):
        text = f"expected a time with its zone, such as 2026-12-01T12:00:00Z, not {events.signed_since!r}"
        yield Fault(f"{place} signed_since", text)
    if events.replicas not in (1, 3, 5):
        yield Fault(f"{place} replicas", f"must be 1, 3 or 5, not {events.replicas}")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
