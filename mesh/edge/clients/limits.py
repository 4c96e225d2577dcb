"""Limits on clients of one edge, and the metric of the requests that they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import metrics

from mesh.edge.clients.budget import FairBudget

if TYPE_CHECKING:
    from mesh.config.manifest import EdgeConfig

__all__ = ["ClientLimits"]

DEFAULT_UPLOADS = 1000
DEFAULT_BUFFERS_BYTES = 64 * 2**20
DEFAULT_STALL_TIMEOUT = 10.0


class ClientLimits:
    """Limits on what the clients of one edge make it wait for.

    Args:
        uploads: Requests whose bodies may be incomplete at the same time.
        buffers: Bytes of bodies and responses that may be held.
        stall: Seconds for which a client may send or read nothing while the edge waits for it.

    Attributes:
        uploads: The budget of incomplete requests.
        buffers: The budget of bytes.
        stall: As given.
        response_sizes: Path of a method with large responses → expected size of one, bytes.
    """

    __slots__ = ("_counter", "buffers", "response_sizes", "stall", "uploads")

    def __init__(
        self,
        uploads: int = DEFAULT_UPLOADS,
        buffers: int = DEFAULT_BUFFERS_BYTES,
        stall: float = DEFAULT_STALL_TIMEOUT,
    ) -> None:
        self.uploads = FairBudget(uploads)
        self.buffers = FairBudget(buffers)
        self.stall = stall
        self.response_sizes: dict[str, int] = {}
        self._counter = metrics.get_meter("mesh.edge").create_counter(
            "mesh.edge.refused", "{request}", "Requests that a limit on clients has refused or ended, by reason"
        )

    @classmethod
    def of(cls, config: EdgeConfig) -> ClientLimits:
        """Return the limits of ``[edge]``."""
        return cls(config.uploads, int(config.buffers), float(config.stall))

    def count(self, reason: str) -> None:
        """Count a request that was refused or ended."""
        self._counter.add(1, {"reason": reason})
