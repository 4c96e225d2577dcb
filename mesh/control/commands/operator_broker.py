"""The operator's connection to the broker of mesh.toml, or to that of the running mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mesh.config.manifest import Manifest
from mesh.control import identity_keys, mesh_certificates, run_state
from mesh.control.component import service_events
from mesh.events.broker.broker import Broker, Settings
from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from mesh.events.broker.nats_connection import NatsConnection
    from mesh.events.signatures import EventSigner

__all__ = ["connected", "settings"]

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for the connection to the broker."""


def settings(manifest: Manifest) -> Settings:
    """Return the settings of the connection.

    Raises:
        Faults: There is no broker.
    """
    mesh = run_state.running(manifest.state)
    url = manifest.broker or (mesh.broker if mesh is not None else "")
    if not url:
        raise Faults([Fault(str(manifest.file), "the mesh does not run, and no broker is named; start it: mesh up")])
    return service_events.broker_settings(mesh_certificates.with_broker(manifest, url), identity_keys.OPERATOR)


@asynccontextmanager
async def connected(
    manifest: Manifest, name: str, signer: EventSigner | None = None
) -> AsyncIterator[tuple[Broker, NatsConnection]]:
    """Connect for the time of a block.

    Args:
        manifest: The manifest.
        name: Name of the connection, which the broker shows.
        signer: Signs what is published; None: nothing can be published.

    Raises:
        Faults: There is no broker, or it cannot be reached.
    """
    broker = Broker(settings(manifest), name, signer)
    broker.start()
    try:
        try:
            connection = await asyncio.wait_for(broker.ready(), CONNECT_TIMEOUT)
        except TimeoutError:
            raise Faults([Fault("broker", f"it did not accept a connection within {CONNECT_TIMEOUT:g} s")]) from None
        yield broker, connection
    finally:
        await broker.stop()
