"""Bytes of a response in a budget: from its expectation until the server has written them.

h2corn takes up to 2 MiB of responses for each connection of HTTP/2, and 32 events of a response over HTTP/1.1, before
it makes the application wait. It reports nothing when it has written them, but then it drops the ``bytes`` objects that
it was given. So large responses are given to it as ``Piece``, whose finalizer tells how much was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.rpc.server.clients.budget import Holding
    from mesh.rpc.server.clients.limits import ClientLimits

__all__ = ["HeldResponse", "Piece"]


class Piece(bytes):
    """Bytes of a response in the hands of the server. Their end is reported to ``ClientLimits.written``."""

    response: HeldResponse

    def __del__(self) -> None:
        """Report the end; in any thread."""
        self.response.limits.written.append((self.response, len(self)))


class HeldResponse:
    """Bytes of one response, or of the messages of a response stream, in the budget of a component.

    Args:
        limits: The limits, which have the budget.
        holding: Share in the budget.

    Attributes:
        limits: As given.
        unwritten: Bytes that the server has and has not written yet.
    """

    __slots__ = ("_holding", "_reserved", "limits", "unwritten")

    def __init__(self, limits: ClientLimits, holding: Holding) -> None:
        self.limits = limits
        self._holding = holding
        self._reserved = 0
        self.unwritten = 0

    def reserve(self, size: int) -> bool:
        """Count at least ``size`` bytes for the response, or for the next message of the stream.

        Returns:
            False if the budget does not allow them. Then nothing is counted.
        """
        missing = size - self._reserved
        if missing <= 0:
            return True
        self._reserved = size
        if self.limits.hold(self._holding, missing):
            return True
        self._reserved = 0
        return False

    def piece(self, data: bytes | memoryview) -> Piece:
        """Return bytes for the server."""
        piece = Piece(data)
        piece.response = self
        self.unwritten += len(data)
        return piece

    def release(self) -> None:
        """End the reservation. What the server has not written stays counted."""
        self._reserved = 0
        self.limits.collect()
        self.limits.buffers.reduce(self._holding, self.unwritten)

    def on_written(self, size: int) -> None:
        """Count bytes no longer that the server has written."""
        self.unwritten -= size
        if not self._reserved:
            self.limits.buffers.reduce(self._holding, self.unwritten)
