"""The same seam on grpcio: a handler that asks servers through ``grpc.aio`` channels that carry bytes.

One grpcio channel for each address; grpcio resolves, connects and balances within it, this picks among them. As with
our own channel, a call that finds servers gone which have answered before waits a while; grpcio would fail it.
"""

from __future__ import annotations

import asyncio
import random
import re
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from mesh.address import authority, join
from mesh.boundary import cancel_task
from mesh.call import Metadata, decode_values
from mesh.errors import Code, StatusError, Unavailable
from mesh.message_size import Side, too_large
from mesh.rpc import status
from mesh.rpc.client import resolver
from mesh.rpc.client.connection_pool import PATIENCE
from mesh.rpc.client.http2_stream import wrong_count
from mesh.rpc.client.streaming_call import EOF

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["GrpcioExchange"]

_FAILED = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_READY = grpc.ChannelConnectivity.READY
_LOOK = 0.02
"""Seconds between two looks at the channels while a call waits; watching them, as grpc.aio offers, cannot be undone."""
_CORE = re.compile(r"\b(ipv4|ipv6|unix|dns):|[Rr]esol(ution|ving)|^Deadline Exceeded$|^Stream removed")
"""In texts of grpcio's core about its connections, which name addresses; nothing else tells them from a peer's."""
_TOO_LARGE = re.compile(r"(?:CLIENT: Received message|^Decompressed message) larger than max(?: \((\d+) vs\. \d+\))?")
"""Of a response, as grpcio's core says it: a request was measured here before, by the limit of the server."""
_TEXTS = {
    Code.UNAVAILABLE: "the service cannot be reached now; try again later",
    Code.DEADLINE_EXCEEDED: "the service did not answer within the deadline",
}


class _Remote:
    """One address."""

    __slots__ = ("address", "channel", "in_flight", "methods")

    def __init__(self, address: str, options: Sequence[tuple[str, Any]]) -> None:
        host, port = resolver.split(address)
        scheme = "dns:///" if not resolver.is_static(address) else "ipv6:" if ":" in host else "ipv4:"
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            scheme + join(host.replace("%", "%25"), port),  # grpcio's own target is a URI
            options=[*options, ("grpc.default_authority", authority(address))],
        )
        self.in_flight = 0
        self.methods: dict[str, Any] = {}

    def multi(self, method: Any) -> Any:
        found = self.methods.get(method.path)
        if found is None:
            found = self.methods[method.path] = getattr(self.channel, method.kind)(method.path)
        return found


class GrpcioExchange:
    """A handler that answers a call by asking a server.

    Args:
        addresses: As of ``Target``.
        max_message: Largest message, request and response alike, bytes.
        agent: What ``user-agent`` begins with.
    """

    def __init__(self, addresses: Sequence[str], *, max_message: int, agent: bytes) -> None:
        options = [
            ("grpc.max_receive_message_length", max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.primary_user_agent", agent.decode()),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ]
        self._remotes = [_Remote(address, options) for address in addresses]
        self._max_message = max_message
        self._answered = False  # one of them, since the last time that patience ended
        self._gone: float | None = None
        self._closed = False

    async def __call__(self, call: Call) -> None:
        """Answer the call.

        Raises:
            StatusError: The server's status, or what kept it from answering.
        """
        call.check_deadline()  # grpcio takes a timeout of 0 for none
        method = call.method
        remote = self._pick()
        if self._answered and not call.wait_for_ready and remote.channel.get_state(try_to_connect=True) is not _READY:
            call.peer = remote.address
            remote = await self._back(call)
        call.peer = remote.address
        arguments = {
            "timeout": call.remaining(),
            "metadata": _to_grpc(call.metadata),
            "wait_for_ready": call.wait_for_ready or None,
            "compression": grpc.Compression.Gzip if call.compression else None,
        }
        remote.in_flight += 1
        pump = None
        try:
            if method.client_streaming:
                under_way = remote.multi(method)(**arguments)
                pump = asyncio.get_running_loop().create_task(
                    self._pump(call, under_way), name=f"requests of {method.path}"
                )
                pump.add_done_callback(_seen)
            else:
                under_way = remote.multi(method)(self._sized(await call.receive_one()), **arguments)
            try:
                await _answer(call, under_way)
                self._answered, self._gone = True, None
            except grpc.aio.AioRpcError as error:
                if pump is not None and pump.done() and not pump.cancelled() and pump.exception() is not None:
                    raise pump.exception() from None  # type: ignore[misc]
                raise self._status(call, error, remote.address) from None
            except asyncio.CancelledError:
                if pump is not None and pump.done() and not pump.cancelled() and pump.exception() is not None:
                    raise pump.exception() from None  # type: ignore[misc]
                under_way.cancel()
                raise
        finally:
            remote.in_flight -= 1
            if pump is not None and not pump.done():
                cancel_task(pump)
                await asyncio.wait([pump])  # unlike awaiting it, this hides no cancellation of ours

    async def close(self) -> None:
        """Close the channels; calls that still run fail."""
        self._closed = True
        for remote in self._remotes:
            await remote.channel.close(None)

    async def _pump(self, call: Call, under_way: Any) -> None:
        try:
            while (message := await call.receive()) is not None:
                self._sized(message)
                try:
                    await under_way.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the call has ended; how, its answer says
            with suppress(grpc.aio.InternalError):  # the same: it has ended, and grpc.aio has not heard of it yet
                await under_way.done_writing()
        except Exception:
            under_way.cancel()
            raise

    def _sized(self, message: bytes) -> bytes:
        """Return a request message.

        Raises:
            ResourceExhausted: It is too large.
        """
        if len(message) > self._max_message:
            raise too_large(Side.REQUEST, self._max_message, len(message))
        return message

    async def _back(self, call: Call) -> _Remote:
        """Return a server when one can be reached, or when patience has ended (or the call's time).

        Raises:
            DeadlineExceeded: The deadline passed first.
            Unavailable: The channel was closed.
        """
        loop = asyncio.get_running_loop()
        gone = self._gone
        if gone is None:
            gone = self._gone = loop.time()
        while True:
            await asyncio.sleep(_LOOK)
            call.check_deadline()
            if self._closed:
                raise Unavailable("the channel to the service is closed").at(call.peer)
            if not self._answered or loop.time() - gone >= PATIENCE:
                break
            remote = self._pick()
            if remote.channel.get_state(try_to_connect=True) is _READY:
                self._gone = None
                return remote
        self._answered = False  # those who come now hear at once, until somebody answers
        self._gone = None
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
        if not _CORE.search(text):  # the server's own, which may be empty
            return StatusError.of(code, text, details)
        safe = _TEXTS.get(code, "the call failed on its way to the service")
        failure = StatusError.of(code, safe, details).at(f"{address}: {text}")
        return status.deadline_exceeded(failure, call.deadline, monotonic())

    def _pick(self) -> _Remote:
        remotes = self._remotes
        if len(remotes) > 1:
            states = [remote.channel.get_state(try_to_connect=True) for remote in remotes]
            for wanted in ((_READY,), tuple(state for state in grpc.ChannelConnectivity if state is not _FAILED)):
                found = [remote for remote, state in zip(remotes, states, strict=True) if state in wanted]
                if found:
                    remotes = found
                    break
        return min(random.sample(remotes, min(2, len(remotes))), key=lambda remote: remote.in_flight)


def _seen(pump: asyncio.Task[None]) -> None:
    """Take note of a failure, whether or not it is what the call fails with."""
    if not pump.cancelled():
        pump.exception()


async def _answer(call: Call, under_way: Any) -> None:
    if call.method.server_streaming:
        call.headers += _to_wire(await under_way.initial_metadata())
        await call.send_headers()
        while (message := await under_way.read()) is not EOF:
            await call.send(message)
    else:
        message = await under_way
        call.headers += _to_wire(await under_way.initial_metadata())
    call.trailers += _to_wire(await under_way.trailing_metadata())
    if not call.method.server_streaming:
        if message is None:
            raise wrong_count(0)
        await call.send(message)


def _to_grpc(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    pairs = status.metadata_of(metadata.pairs)
    return [(name.decode(), value) for name, wire in pairs for value in decode_values(name, wire)]


def _to_wire(pairs: Any) -> list[tuple[bytes, bytes]]:
    """Return the metadata that grpcio gives, as it came: what another server sends is not ours to refuse."""
    return status.metadata_of(
        (key.encode(), b64encode(value).rstrip(b"=") if key.endswith("-bin") else _text(value))
        for key, value in pairs or ()
    )


def _text(value: str | bytes) -> bytes:
    """Return a text value without outer spaces, which grpcio lets pass and HTTP/2 does not (RFC 9113, 8.2.1)."""
    return (value.encode() if isinstance(value, str) else value).strip(b" \t")
