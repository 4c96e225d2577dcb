"""Fair budget: an amount that many clients share. When it is used up, the client that holds most gives back first.

A pure data structure: it holds no task and no clock. A client is an address with its connections. Below the limit
nothing is held back, so one client alone may use all of it. Beyond the limit, each addition displaces holdings of a
client that holds more than the one that asks, else of a connection of the same client that holds more, else it is
refused itself (max-min fairness by longest queue drop; McKenney, *Stochastic Fairness Queueing*, 1990).

Only what waits for its client can be displaced. A holding that is worked on stays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from heapq import nlargest
from operator import attrgetter
from typing import Protocol

__all__ = ["FairBudget", "Holding", "Owner"]

COMPARED = 4
"""Largest clients, and largest connections of one client, in which a holding to displace is searched."""

_total = attrgetter("total")
_amount = attrgetter("amount")


class Owner(Protocol):
    """Owner of a holding."""

    @property
    def displaceable(self) -> bool:
        """Whether it waits for its client, and can end for another one."""

    def displace(self) -> None:
        """End: another client needs the amount. It has been released already."""


class Holding:
    """Share of one request in a budget.

    Args:
        client: Key of the client.
        connection: Key of its connection.
        owner: Is told when the holding is displaced.

    Attributes:
        amount: The amount that it holds.
    """

    __slots__ = ("amount", "client", "connection", "owner")

    def __init__(self, client: Hashable, connection: Hashable, owner: Owner) -> None:
        self.client = client
        self.connection = connection
        self.owner = owner
        self.amount = 0


class _ConnectionShare:
    __slots__ = ("holdings", "total")

    def __init__(self) -> None:
        self.total = 0
        self.holdings: dict[Holding, None] = {}  # oldest first


class _ClientShare:
    __slots__ = ("connections", "total")

    def __init__(self) -> None:
        self.total = 0
        self.connections: dict[Hashable, _ConnectionShare] = {}


class FairBudget:
    """Budget of one resource.

    Args:
        limit: The amount that may be held.

    Attributes:
        used: The amount that is held.
    """

    __slots__ = ("_clients", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._clients: dict[Hashable, _ClientShare] = {}

    def add(self, holding: Holding, amount: int) -> bool:
        """Let a holding hold more.

        Returns:
            False if it may not; then it holds nothing. Holdings of others may have been displaced.
        """
        client = self._clients.setdefault(holding.client, _ClientShare())
        connection = client.connections.setdefault(holding.connection, _ConnectionShare())
        connection.holdings[holding] = None
        holding.amount += amount
        connection.total += amount
        client.total += amount
        self.used += amount
        while self.used > self.limit:
            victim = self._victim(client, connection)
            if victim is None:
                self.release(holding)
                return False
            self.release(victim)
            victim.owner.displace()
        return True

    def release(self, holding: Holding) -> None:
        """Take back all that a holding holds. It may be used again."""
        client = self._clients.get(holding.client)
        connection = None if client is None else client.connections.get(holding.connection)
        if client is None or connection is None or holding not in connection.holdings:
            return
        del connection.holdings[holding]
        connection.total -= holding.amount
        client.total -= holding.amount
        self.used -= holding.amount
        holding.amount = 0
        if not connection.holdings:
            del client.connections[holding.connection]
            if not client.connections:
                del self._clients[holding.client]

    def reduce(self, holding: Holding, amount: int) -> None:
        """Let a holding hold ``amount`` at most."""
        if amount <= 0:
            self.release(holding)
            return
        excess = holding.amount - amount
        if excess > 0:
            client = self._clients[holding.client]
            holding.amount -= excess
            client.connections[holding.connection].total -= excess
            client.total -= excess
            self.used -= excess

    def _victim(self, client: _ClientShare, connection: _ConnectionShare) -> Holding | None:
        """Return the holding to displace for one of this connection; None if its own share is the largest."""
        for other in nlargest(COMPARED, self._clients.values(), key=_total):
            if other.total <= client.total:
                break
            found = _displaceable(nlargest(COMPARED, other.connections.values(), key=_total))
            if found is not None:
                return found
        # Requests of one client that are as large as each other would displace each other in turn.
        larger = [one for one in client.connections.values() if one.total > connection.total]
        for one in nlargest(COMPARED, larger, key=_total):
            found = _displaceable((one,))
            if found is not None and one.total - found.amount >= connection.total:
                return found
        return None


def _displaceable(connections: Iterable[_ConnectionShare]) -> Holding | None:
    """Return the largest holding that can be displaced, the newest of equal ones, of the first connection with one."""
    for connection in connections:
        found = max((one for one in reversed(connection.holdings) if one.owner.displaceable), key=_amount, default=None)
        if found is not None:
            return found
    return None
