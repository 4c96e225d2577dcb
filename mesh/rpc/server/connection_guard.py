"""Connection guard: shares a listener's connections between clients, and limits the time of a request's head.

h2corn accepts connections itself and has one limit for all of them. Its timeout of a request's head begins anew with
each byte. So the guard looks at the process's own sockets once a second, in a thread. It shuts down those that are too
slow, and those of the clients that have most when there are too many (max-min fairness). ``shutdown`` of a duplicate of
the descriptor ends the connection for h2corn as if its client had gone; the duplicate makes sure that the descriptor
has not been used again meanwhile. It needs ``/proc`` (Linux); where that is missing, nothing is limited.

What the kernel can do itself is set on the listening socket, from which connections inherit it (``tcp(7)``):

- ``TCP_USER_TIMEOUT``: a client that reads nothing for so long, while there is something for it, loses its connection.
- ``TCP_NOTSENT_LOWAT``: the kernel takes no more of a response than it can send soon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from time import monotonic, thread_time

from mesh.asgi import Scope

__all__ = ["ConnectionGuard", "ConnectionRequests", "PublicLimits", "fair_share", "limit_unread", "prepare"]

log = logging.getLogger(__name__)

DESCRIPTORS = Path("/proc/self/fd")
SWEEP_INTERVAL = 1.0
"""Seconds between two looks at the connections."""
MAX_SWEEP_SHARE = 0.02
"""Share of a processor that the looks may take; with very many connections they become rarer."""
MAX_FILL = 0.875
"""Share of the connections that may be used. The rest is for those that come between two looks."""
UNSENT_BYTES = 128 * 2**10
"""Bytes of a response that the kernel takes before it can send them."""
IDLE_HEAD_TIMEOUT = 120.0
"""Seconds without a complete request after which a connection of HTTP/1.1 is closed. h2corn closes a silent one
earlier; this is for those whose clients send a head byte by byte."""
_SITE_PREFIX = 64
_HTTP1 = "1.1"

Peer = tuple[str, int]
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class PublicLimits:
    """Limits of a listener whose clients are not trusted.

    Attributes:
        streams: Requests in progress on one connection of HTTP/2.
        connections: Connections at most. A client is an IPv4 address, or an IPv6 /64 network.
        stall: Seconds for which a client may read nothing, or send nothing of a request's head.
        max_frame: Bytes of the largest message on a WebSocket.
        proxies: Networks whose connections are left alone, because they are those of many clients.
        refused: Is told when a connection was closed, with the reason.
    """

    streams: int
    connections: int
    stall: float
    max_frame: int
    proxies: tuple[Network, ...]
    refused: Callable[[str], None]


def prepare(fd: int, stall: float) -> None:
    """Set the options of a listening socket that its connections inherit."""
    limit_unread(fd, stall)
    _set_option(fd, "TCP_NOTSENT_LOWAT", UNSENT_BYTES)


def limit_unread(fd: int, seconds: float) -> None:
    """Let the kernel close the connections of a listening socket whose peer reads nothing for so long."""
    _set_option(fd, "TCP_USER_TIMEOUT", int(seconds * 1000))


def _set_option(fd: int, name: str, value: int) -> None:
    option = getattr(socket, name, None)  # of Linux
    if option is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as listening:
            listening.setsockopt(socket.IPPROTO_TCP, option, value)


class _OpenConnection:
    """A connection as the guard sees it.

    Attributes:
        descriptor: Its descriptor.
        inode: Its inode, which shows whether the descriptor has been used again.
        peer: Address and port of its other end.
        client: Key of its client; None: a proxy.
        since: Loop time at which it was first seen.
        late: Whether it was late at the last look. It is closed at the next one, because the loop may lag.
        closed: Whether it was shut down.
    """

    __slots__ = ("client", "closed", "descriptor", "inode", "late", "peer", "since")

    def __init__(self, descriptor: int, inode: int, peer: Peer, client: str | None, since: float) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.peer = peer
        self.client = client
        self.since = since
        self.late = False
        self.closed = False


class ConnectionRequests:
    """Requests of one connection.

    Attributes:
        http1: Whether it speaks HTTP/1.1.
        in_progress: Requests in progress.
        ended: Loop time at which the last one ended, seconds.
    """

    __slots__ = ("ended", "http1", "in_progress")

    def __init__(self, *, http1: bool) -> None:
        self.http1 = http1
        self.in_progress = 0
        self.ended = 0.0


class ConnectionGuard:
    """The connections of a listener, with the task that looks at them.

    Args:
        limits: The limits.

    Attributes:
        requests: The requests of each connection, kept by the listener.
    """

    def __init__(self, limits: PublicLimits) -> None:
        self._limits = limits
        self.requests: dict[Peer, ConnectionRequests] = {}
        self._known: dict[int, _OpenConnection | None] = {}  # by inode; None: not of this listener
        self._by_peer: dict[Peer, _OpenConnection] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, peer: Peer, scope: Scope) -> ConnectionRequests:
        """Add a connection by its first request."""
        found = self.requests[peer] = ConnectionRequests(http1=scope.get("http_version") == _HTTP1)
        return found

    def start(self, address: str) -> None:
        """Start to look at the connections of the listener at ``host:port``."""
        if DESCRIPTORS.is_dir():
            self._task = asyncio.get_running_loop().create_task(self._watch(int(address.rpartition(":")[2])))

    async def stop(self) -> None:
        """Stop it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def is_private(self, peer: Peer) -> bool:
        """Whether the connection of a peer is known, and is that of one client, not of a proxy."""
        connection = self._by_peer.get(peer)
        return connection is not None and not connection.closed and connection.client is not None

    def close(self, peer: Peer) -> bool:
        """Close the connection of a peer, without a word in the log. Return False if it is not known (yet)."""
        connection = self._by_peer.get(peer)
        return connection is not None and self._shut_down(connection)

    async def _watch(self, port: int) -> None:
        while True:
            seconds = await asyncio.to_thread(self.sweep, port, monotonic())
            await asyncio.sleep(max(SWEEP_INTERVAL, seconds / MAX_SWEEP_SHARE))

    def sweep(self, port: int, now: float) -> float:
        """Look at the connections once, and shut down those beyond the limits.

        Args:
            port: Port of the listener.
            now: Loop time, seconds.

        Returns:
            Seconds of processor time that it took.
        """
        began = thread_time()
        self._find(port, now)
        room = self._limits.connections * MAX_FILL
        by_client: dict[str, list[tuple[bool, float, int, _OpenConnection]]] = defaultdict(list)
        for inode, connection in list(self._known.items()):
            if connection is None or connection.closed:
                continue
            requests = self.requests.get(connection.peer)
            if self._is_late(connection, requests, now):
                self._close(connection, "slow_head")
            elif connection.client is None:
                room -= 1
            else:
                idle = requests is None or not requests.in_progress
                by_client[connection.client].append((idle, connection.since, inode, connection))
        share = fair_share([len(connections) for connections in by_client.values()], room)
        for connections in by_client.values():
            if len(connections) > share:
                connections.sort(reverse=True)  # those without requests first, of these the newest
                for _, _, _, connection in connections[: len(connections) - share]:
                    self._close(connection, "connections")
        return thread_time() - began

    def _find(self, port: int, now: float) -> None:
        """Bring the known connections up to date."""
        found: set[int] = set()
        for file in DESCRIPTORS.iterdir():
            with contextlib.suppress(OSError, ValueError):
                descriptor = int(file.name)
                inode = os.fstat(descriptor).st_ino
                found.add(inode)
                if inode not in self._known:
                    connection = self._known[inode] = self._look(descriptor, inode, port, now)
                    if connection is not None:
                        self._by_peer[connection.peer] = connection
        for inode in self._known.keys() - found:
            gone = self._known.pop(inode)
            if gone is not None:
                self.requests.pop(gone.peer, None)
                if self._by_peer.get(gone.peer) is gone:
                    del self._by_peer[gone.peer]

    def _look(self, descriptor: int, inode: int, port: int, now: float) -> _OpenConnection | None:
        """Return the connection of a descriptor that was not seen before; None if it is none of this listener."""
        with _duplicate(descriptor, inode) as duplicate:
            if duplicate is None or duplicate.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            try:
                if duplicate.getsockname()[1] != port:
                    return None
                host, peer_port = duplicate.getpeername()[:2]
            except OSError:  # the listening socket, or a client that has gone
                return None
        address = ip_address(host.partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return _OpenConnection(descriptor, inode, (host, peer_port), self._client_of(mapped or address), now)

    def _client_of(self, address: IPv4Address | IPv6Address) -> str | None:
        if any(address in network for network in self._limits.proxies):
            return None
        if isinstance(address, IPv6Address):
            return str(IPv6Network((int(address), _SITE_PREFIX), strict=False))
        return str(address)

    def _is_late(self, connection: _OpenConnection, requests: ConnectionRequests | None, now: float) -> bool:
        """Whether a request's head has not come in time, at this look and at the one before."""
        if requests is None:
            late = now - connection.since > self._limits.stall
        else:
            late = requests.http1 and not requests.in_progress and now - requests.ended > IDLE_HEAD_TIMEOUT
        late, connection.late = late and connection.late, late
        return late

    def _close(self, connection: _OpenConnection, reason: str) -> None:
        if self._shut_down(connection):
            self._limits.refused(reason)

    def _shut_down(self, connection: _OpenConnection) -> bool:
        connection.closed = True
        with _duplicate(connection.descriptor, connection.inode) as duplicate, contextlib.suppress(OSError):
            if duplicate is not None:
                duplicate.shutdown(socket.SHUT_RDWR)
                return True
        return False


def fair_share(sizes: list[int], room: float) -> int:
    """Return the largest share that every client may have so that all fit, at least 1.

    Args:
        sizes: Number of connections of each client.
        room: Number that all may have together.
    """
    low, high = 1, max(sizes, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(size, middle) for size in sizes) <= room:
            low = middle
        else:
            high = middle - 1
    return low


@contextlib.contextmanager
def _duplicate(descriptor: int, inode: int) -> Iterator[socket.socket | None]:
    """Give a socket on a duplicate of a descriptor; None if it is no socket, or another file by now."""
    duplicate: socket.socket | None = None
    with contextlib.suppress(OSError):
        copy = os.dup(descriptor)
        try:
            if os.fstat(copy).st_ino == inode:
                duplicate = socket.socket(fileno=copy)
        finally:
            if duplicate is None:
                os.close(copy)
    try:
        yield duplicate
    finally:
        if duplicate is not None:
            duplicate.close()
