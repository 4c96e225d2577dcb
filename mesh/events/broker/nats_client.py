"""NATS client that speaks TLS, or not at all, with a server that is to be reached by TLS.

The server says in its first line, which is plain text, whether it requires TLS. nats-py 2.16 goes on in plain text if
it does not, also with ``tls://``. Whoever can change that line would read the credentials and events that follow.
"""

from __future__ import annotations

from typing import Any

import nats.errors
from nats.aio.client import Client

__all__ = ["NatsClient"]


class NatsClient(Client):
    """Client of one connection."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 - as in Client
        if initial_connection and self.options.get("tls") and not info.get("tls_required"):
            raise nats.errors.Error("the server speaks plain text, and this side TLS")
        await super()._process_info(info, initial_connection)
