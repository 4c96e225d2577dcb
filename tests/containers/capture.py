"""A packet capture of the containers' network: what a listener on the bridge reads, by the server of each connection.

It needs Linux and the right to open packet sockets (CAP_NET_RAW), in the network namespace of the engine.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from math import inf
from typing import Self

ALL_PROTOCOLS = 3
"""ETH_P_ALL of ``if_ether.h``."""
SO_RCVBUFFORCE = 33
BUFFER_BYTES = 64 * 2**20
_IPV4, _TCP = 0x0800, 6
_STOP_INTERVAL = 0.2
DRAIN_TIMEOUT = 5.0
"""Seconds for which the buffer is read after the end, at most; others may send without pause."""

End = tuple[str, int]
"""Address and port."""


class Capture:
    """Capture of TCP on all interfaces of this network namespace, from entering to leaving.

    Raises:
        OSError: Packet sockets are not allowed here (PermissionError), or there are none.
    """

    def __init__(self) -> None:
        if not hasattr(socket, "AF_PACKET"):
            raise OSError("packet sockets are of Linux")
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        self._socket.settimeout(_STOP_INTERVAL)
        self._frames: list[bytes] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        end = inf
        while time.monotonic() < end:  # what is still in the buffer at the end was sent before
            if self._done.is_set() and end == inf:
                end = time.monotonic() + DRAIN_TIMEOUT
            try:
                self._frames.append(self._socket.recv(2**17))
            except TimeoutError:
                if self._done.is_set():
                    return

    def read(self, servers: Mapping[End, str]) -> dict[str, bytes]:
        """Return what was on the way to and from each server, one connection and direction after the other.

        Args:
            servers: Address and port of a server → its name.
        """
        segments: dict[tuple[End, End], dict[int, bytes]] = defaultdict(dict)
        for frame in self._frames:
            found = _segment(frame)
            if found is not None:
                source, target, sequence, payload = found
                kept = segments[source, target]
                if len(payload) > len(kept.get(sequence, b"")):  # each is seen on several interfaces
                    kept[sequence] = payload
        read: dict[str, bytes] = defaultdict(bytes)
        for (source, target), parts in segments.items():
            name = servers.get(target) or servers.get(source)
            if name is not None:
                read[name] += _joined(parts) + b"\n"
        return dict(read)


def _segment(frame: bytes) -> tuple[End, End, int, bytes] | None:
    """Return source, target, sequence number and payload of a TCP segment over IPv4; None: it is none, or empty."""
    if len(frame) < 54 or struct.unpack_from(">H", frame, 12)[0] != _IPV4 or frame[23] != _TCP:
        return None
    length = struct.unpack_from(">H", frame, 16)[0]
    at = 14 + (frame[14] & 15) * 4
    source_port, target_port, sequence = struct.unpack_from(">HHI", frame, at)
    payload = frame[at + (frame[at + 12] >> 4) * 4 : 14 + length if length else None]
    if not payload:
        return None
    source, target = (socket.inet_ntoa(frame[begin : begin + 4]) for begin in (26, 30))
    return (source, source_port), (target, target_port), sequence, payload


def _joined(parts: Mapping[int, bytes]) -> bytes:
    """Return one direction of a connection: its segments in order, without what was sent again."""
    text, end = b"", -1
    for sequence in sorted(parts):
        payload = parts[sequence]
        if sequence > end >= 0:
            text += b"\n"  # a gap
        if end < sequence + len(payload):
            text += payload[max(0, end - sequence) if end >= 0 else 0 :]
            end = sequence + len(payload)
    return text
