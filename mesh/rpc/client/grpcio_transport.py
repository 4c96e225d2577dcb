"""grpcio transport: a handler that calls servers through ``grpc.aio`` channels, with messages as bytes.

There is one grpcio channel for each address. grpcio resolves, connects and balances within it; this module picks among
the channels. When all servers are lost after they have responded, calls wait for ``RECONNECT_TIMEOUT`` as they do in
``connection_pool``; grpcio would fail them. With TLS, a renewal makes new channels, because a channel keeps its
credentials.

It does not eject addresses. grpcio's own outlier detection (gRPC proposal A50) counts every status but OK, so errors of
functions would eject healthy servers. Its keepalive does not find a frozen server quickly either: grpc's servers close
connections that send PINGs often.
"""

from __future__ import annotations

import asyncio
import random
import re
from base64 import b64encode
from collections.abc import Collection, Sequence
from contextlib import suppress
from time import monotonic  # the clock of asyncio's and uvloop's event loops
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh.address import authority, join
from mesh.boundary import cancel_task
from mesh.call import Metadata, decode_values
from mesh.errors import Code, DeadlineExceeded, StatusError, Unavailable
from mesh.message_size import Side, too_large
from mesh.rpc import status
from mesh.rpc.client import resolver
from mesh.rpc.client.connection_pool import (
    BACKOFF_BASE_DELAY,
    BACKOFF_MAX_DELAY,
    CONNECT_TIMEOUT,
    RECONNECT_TIMEOUT,
)
from mesh.rpc.client.grpcio_credentials import grpcio_credentials, name_option
from mesh.rpc.client.http2_stream import wrong_response_count
from mesh.rpc.client.streaming_call import EOF

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.circuit_breaker import CircuitBreaker
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["GrpcioTransport"]

_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_READY = grpc.ChannelConnectivity.READY
_POLL_INTERVAL = 0.02
"""Seconds between two looks at the channels while a call waits. A watch on them, as grpc.aio offers it, cannot be
cancelled."""
HANDSHAKE_TIMEOUT = 5.0
"""Seconds for an attempt to connect. A busy server may need more than ``BACKOFF_BASE_DELAY`` for its SETTINGS."""
RETIRED_TIMEOUT = 3600.0
"""Seconds that calls over channels with old certificates may last after a renewal."""
_CORE_TEXT = re.compile(r"\b(ipv4|ipv6|unix|dns):|[Rr]esol(ution|ving)|^Deadline Exceeded$|^Stream removed")
"""Matches texts of grpcio's core about its connections, which name addresses. Nothing else tells them from a server's
own texts."""
_TOO_LARGE = re.compile(r"(?:CLIENT: Received message|^Decompressed message) larger than max(?: \((\d+) vs\. \d+\))?")
"""Matches the text of grpcio's core for a response that is too large. A request was checked here before it was sent."""
_MESSAGES = {
    Code.UNAVAILABLE: "the service cannot be reached now; try again later",
    Code.DEADLINE_EXCEEDED: "the service did not answer within the deadline",
}


class _AddressChannel:
    """The grpcio channel to one address.

    Attributes:
        address: ``host:port``.
        channel: The channel.
        in_flight: Calls in progress on it.
        methods: Its callables by the path of their methods.
    """

    __slots__ = ("address", "channel", "in_flight", "methods")

    def __init__(self, address: str, tls: ServiceTls | None, options: Sequence[tuple[str, Any]]) -> None:
        host, port = resolver.split(address)
        scheme = "dns:///" if not resolver.is_static(address) else "ipv6:" if ":" in host else "ipv4:"
        target = scheme + join(host.replace("%", "%25"), port)  # grpcio's own target is a URI
        self.address = address
        if tls is None:
            named = ("grpc.default_authority", authority(address))
            self.channel = grpc.aio.insecure_channel(target, options=[*options, named])
        else:
            self.channel = grpc.aio.secure_channel(
                target, grpcio_credentials(tls), options=[*options, name_option(tls)]
            )
        self.in_flight = 0
        self.methods: dict[str, Any] = {}

    def multi_callable(self, method: Any) -> Any:
        found = self.methods.get(method.path)
        if found is None:
            found = self.methods[method.path] = getattr(self.channel, method.kind)(method.path)
        return found


class GrpcioTransport:
    """Handler that answers a call by calling a server.

    Args:
        addresses: As for ``Target``.
        breaker: The target's circuit breaker.
        tls: TLS to the service, or None for plain text.
        max_message: Largest message in bytes, for requests and responses.
        agent: First part of ``user-agent``; grpcio adds its own.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        breaker: CircuitBreaker,
        tls: ServiceTls | None = None,
        *,
        max_message: int,
        agent: bytes,
    ) -> None:
        self._addresses = tuple(addresses)
        self._tls = tls
        self._options = [
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.primary_user_agent", agent.decode()),
            ("grpc.initial_reconnect_backoff_ms", int(BACKOFF_BASE_DELAY * 1000)),
            # Whatever its name says, it bounds each attempt to connect, up to the server's SETTINGS.
            ("grpc.min_reconnect_backoff_ms", int(HANDSHAKE_TIMEOUT * 1000)),
            ("grpc.max_reconnect_backoff_ms", int(BACKOFF_MAX_DELAY * 1000)),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ]
        self._breaker = breaker
        self._channels = self._new_channels()
        self._renewals: set[asyncio.Task[None]] = set()
        if tls is not None:
            tls.subscribe(self._renew)
        self._max_message = max_message
        self._has_responded = False  # one of the servers, since the last reconnect timeout
        self._lost_at: float | None = None
        self._closed = False

    async def __call__(self, call: Call) -> None:
        """Answer the call.

        Raises:
            StatusError: The server's status, or the failure to reach it.
        """
        call.check_deadline()  # grpcio treats a timeout of 0 as none
        method = call.method
        chosen = await self._choose(call)
        arguments = {
            "timeout": call.remaining(),
            "metadata": _to_grpc(call.metadata),
            "wait_for_ready": call.wait_for_ready or None,
            "compression": grpc.Compression.Gzip if call.compression else None,
        }
        chosen.in_flight += 1
        sender = None
        try:
            if method.client_streaming:
                grpc_call = chosen.multi_callable(method)(**arguments)
                sender = asyncio.get_running_loop().create_task(
                    self._send_requests(call, grpc_call), name=f"requests of {method.path}"
                )
                sender.add_done_callback(_retrieve_exception)
            else:
                grpc_call = chosen.multi_callable(method)(self._check_size(await call.receive_one()), **arguments)
            try:
                await _receive_response(call, grpc_call)
                self._has_responded, self._lost_at = True, None
                if self._breaker.has_failures:
                    self._breaker.answered()
            except grpc.aio.AioRpcError as error:
                if sender is not None and sender.done() and not sender.cancelled() and sender.exception() is not None:
                    raise sender.exception() from None  # type: ignore[misc]
                failure = self._status(call, error, chosen.address)
                self._record(call, failure)
                raise failure from None
            except asyncio.CancelledError:
                if sender is not None and sender.done() and not sender.cancelled() and sender.exception() is not None:
                    raise sender.exception() from None  # type: ignore[misc]
                grpc_call.cancel()
                if call.deadline is not None and monotonic() >= call.deadline:
                    self._breaker.failed(call, DeadlineExceeded())
                raise
        finally:
            chosen.in_flight -= 1
            if sender is not None and not sender.done():
                cancel_task(sender)
                await asyncio.wait([sender])  # awaiting the task itself would hide a cancellation of this one

    async def close(self) -> None:
        """Close the channels; calls in progress fail."""
        self._closed = True
        for renewal in self._renewals:
            renewal.cancel()
        for each in self._channels:
            await each.channel.close(None)

    async def _choose(self, call: Call) -> _AddressChannel:
        """Return the channel for a call; if all servers were lost, wait for one (see ``_wait_for_channel``)."""
        chosen = self._pick(call.tried)
        if (
            self._has_responded
            and not call.wait_for_ready
            and chosen.channel.get_state(try_to_connect=True) is not _READY
        ):
            chosen = await self._wait_for_channel(call, chosen.address)
        call.peer = chosen.address
        if call.tried is not None:
            call.tried.add(chosen)
        return chosen

    def _record(self, call: Call, error: StatusError) -> None:
        if error.code is Code.UNAVAILABLE or (error.code is Code.DEADLINE_EXCEEDED and call.remaining() == 0.0):
            self._breaker.failed(call, error)
        elif self._breaker.has_failures:
            self._breaker.answered()

    def _new_channels(self) -> list[_AddressChannel]:
        return [_AddressChannel(address, self._tls, self._options) for address in self._addresses]

    def _renew(self) -> None:
        """Make channels with the new certificates."""
        if not self._closed:
            renewal = asyncio.get_running_loop().create_task(self._replace_channels(), name="renew channels")
            self._renewals.add(renewal)
            renewal.add_done_callback(self._renewals.discard)

    async def _replace_channels(self) -> None:
        """Use new channels as soon as one is connected; the old ones end with their calls."""
        new, old = self._new_channels(), self._channels
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    while all(each.channel.get_state(try_to_connect=True) is not _READY for each in new):  # noqa: ASYNC110
                        await asyncio.sleep(_POLL_INTERVAL)
            if self._channels is old:
                new, self._channels = old, new
        finally:  # those that are not used: the old ones, or all after a second renewal or the end
            await asyncio.gather(*(each.channel.close(RETIRED_TIMEOUT) for each in new))

    async def _send_requests(self, call: Call, grpc_call: Any) -> None:
        try:
            while (message := await call.receive()) is not None:
                self._check_size(message)
                try:
                    await grpc_call.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the call has ended; its status is read from its response
            with suppress(grpc.aio.InternalError):  # the same, before grpc.aio has noticed the end
                await grpc_call.done_writing()
        except Exception:
            grpc_call.cancel()
            raise

    def _check_size(self, message: bytes) -> bytes:
        """Return the request message.

        Raises:
            ResourceExhausted: It is too large.
        """
        if len(message) > self._max_message:
            raise too_large(Side.REQUEST, self._max_message, len(message))
        return message

    async def _wait_for_channel(self, call: Call, address: str) -> _AddressChannel:
        """Return a channel as soon as one is connected, or any after the reconnect timeout.

        Raises:
            DeadlineExceeded: The deadline passed first.
            Unavailable: The channel was closed.
        """
        loop = asyncio.get_running_loop()
        lost_at = self._lost_at
        if lost_at is None:
            lost_at = self._lost_at = loop.time()
        while True:
            await asyncio.sleep(_POLL_INTERVAL)
            call.check_deadline()
            if self._closed:
                raise Unavailable("the channel to the service is closed").at(address)
            if not self._has_responded or loop.time() - lost_at >= RECONNECT_TIMEOUT:
                break
            chosen = self._pick()
            if chosen.channel.get_state(try_to_connect=True) is _READY:
                self._lost_at = None
                return chosen
        self._has_responded = False  # further calls fail at once, until a server responds
        self._lost_at = None
        return self._pick()

    def _status(self, call: Call, error: grpc.aio.AioRpcError, address: str) -> StatusError:
        headers: Any = error.initial_metadata()
        trailers: Any = error.trailing_metadata()
        if not call.headers_sent:
            call.headers += _to_wire(headers)
        call.trailers += _to_wire(trailers)
        rich = b""
        for key, value in trailers or ():
            if key == status.DETAILS.decode() and isinstance(value, bytes):
                rich = value
        details = status.unpack_details(rich) if rich else ()
        code, text = error.code().value[0], error.details() or ""
        large = _TOO_LARGE.search(text) if code == Code.RESOURCE_EXHAUSTED and not details else None
        if large is not None:
            return too_large(Side.RESPONSE, self._max_message, int(large[1]) if large[1] else None).at(address)
        if not _CORE_TEXT.search(text):  # the server's own, which may be empty
            return StatusError.of(code, text, details)
        safe = _MESSAGES.get(code, "the call failed on its way to the service")
        failure = StatusError.of(code, safe, details).at(f"{address}: {text}")
        return status.deadline_exceeded(failure, call.deadline, monotonic())

    def _pick(self, tried: Collection[_AddressChannel] | None = None) -> _AddressChannel:
        channels = self._channels
        if tried:  # attempts before this one went there
            channels = [each for each in channels if each not in tried] or channels
        if len(channels) > 1:
            states = [each.channel.get_state(try_to_connect=True) for each in channels]
            for wanted in ((_READY,), tuple(state for state in grpc.ChannelConnectivity if state is not _FAILED)):
                found = [each for each, state in zip(channels, states, strict=True) if state in wanted]
                if found:
                    channels = found
                    break
        return min(random.sample(channels, min(2, len(channels))), key=lambda each: each.in_flight)


def _retrieve_exception(sender: asyncio.Task[None]) -> None:
    """Mark the exception as retrieved, whether or not the call fails with it."""
    if not sender.cancelled():
        sender.exception()


async def _receive_response(call: Call, grpc_call: Any) -> None:
    if call.method.server_streaming:
        call.headers += _to_wire(await grpc_call.initial_metadata())
        await call.send_headers()
        while (message := await grpc_call.read()) is not EOF:
            await call.send(message)
    else:
        message = await grpc_call
        call.headers += _to_wire(await grpc_call.initial_metadata())
    call.trailers += _to_wire(await grpc_call.trailing_metadata())
    if not call.method.server_streaming:
        if message is None:
            raise wrong_response_count(0)
        await call.send(message)


def _to_grpc(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    pairs = status.metadata_of(metadata.pairs)
    return [(name.decode(), value) for name, wire in pairs for value in decode_values(name, wire)]


def _to_wire(pairs: Any) -> list[tuple[bytes, bytes]]:
    """Return grpcio's metadata as wire pairs, unchecked: a server may send what this side would refuse to send."""
    return status.metadata_of(
        (key.encode(), b64encode(value).rstrip(b"=") if key.endswith("-bin") else _text(value))
        for key, value in pairs or ()
    )


def _text(value: str | bytes) -> bytes:
    """Return a text value without outer spaces, which grpcio accepts and HTTP/2 forbids (RFC 9113, 8.2.1)."""
    return (value.encode() if isinstance(value, str) else value).strip(b" \t")
