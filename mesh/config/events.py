"""What ``broker`` and ``[events]`` of mesh.toml say about the event broker: typed, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from mesh.config.values import Duration, Size
from mesh.faults import Fault

__all__ = ["EventsConfig", "broker_faults", "events_faults"]

_DAY = 86400


class EventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[events]``: how the broker is reached, and how much it keeps.

    Attributes:
        listen: ``host:port`` of the broker that ``mesh up`` runs when ``broker`` names none; port 0 picks a free one.
        user: Who this mesh is there; or in the URL.
        password: And its proof.
        token: Instead of user and password.
        credentials: A ``.creds`` file (JWT and seed), relative to mesh.toml.
        nkey: A file with an NKEY seed, relative to mesh.toml.
        ca: Whom to trust (PEM), relative to mesh.toml; ``""``: the system's authorities.
        certificate: This mesh's own certificate (PEM), when the broker asks for one.
        private_key: And its key (PEM).
        retention: How long events and changes are kept; ``"0s"``: for ever.
        dead_retention: How long dead letters are kept; ``"0s"``: for ever.
        max_bytes: The most that each stream holds; a full one refuses, and outboxes hold. 0: as much as there is room.
        replicas: Servers of the broker's cluster that hold each message.
        max_deliveries: Calls of a function for one event, after which it is a dead letter.
        max_hops: Deliveries in a row, each for an event that the one before published; beyond that a dead letter.
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


def broker_faults(broker: str, place: str) -> Iterator[Fault]:
    """Check the URLs of ``broker``; the fault never shows a password."""
    for url in broker.split(",") if broker else ():
        try:
            parts = urlsplit(url.strip())
            right = parts.scheme in ("nats", "tls") and bool(parts.hostname) and not parts.path and parts.port != 0
        except ValueError:
            right = False
        if not right:
            yield Fault(place, "expected nats://HOST:PORT or tls://HOST:PORT, several with commas between them")


def events_faults(events: EventsConfig, place: str) -> Iterator[Fault]:
    """Check that the values can be meant together."""
    proofs = {"user": events.user, "token": events.token, "credentials": events.credentials, "nkey": events.nkey}
    said = [name for name, value in proofs.items() if value]
    if len(said) > 1:
        yield Fault(f"{place} {said[1]}", f"{' and '.join(said)}: the broker takes one proof of who this is")
    if bool(events.user) != bool(events.password):
        yield Fault(f"{place} user", "user and password belong together")
    if bool(events.certificate) != bool(events.private_key):
        yield Fault(f"{place} certificate", "certificate and private_key belong together")
    for name, value in (("max_deliveries", events.max_deliveries), ("max_hops", events.max_hops)):
        if value < 1:
            yield Fault(f"{place} {name}", f"must be at least 1, not {value}")
    if events.replicas not in (1, 3, 5):
        yield Fault(f"{place} replicas", f"must be 1, 3 or 5, not {events.replicas}")
