"""Types of generated stubs, for type checkers: methods of stubs and their calls.

They describe ``mesh.rpc.client.channel`` and ``blocking_channel``. Stubs on a channel of grpcio have more.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, Unpack

if TYPE_CHECKING:
    import grpc
    import grpc.aio

__all__ = [
    "BidirectionalMethod",
    "BlockingBidirectionalMethod",
    "BlockingClientStreamMethod",
    "BlockingServerStreamMethod",
    "BlockingUnaryMethod",
    "ClientStreamMethod",
    "ServerStreamMethod",
    "UnaryMethod",
]

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResponseT_co = TypeVar("ResponseT_co", covariant=True)

CallMetadata: TypeAlias = Iterable[tuple[str, str | bytes]]
"""Metadata of a call: pairs of key and value; bytes for ``-bin`` keys."""


class CallOptions(TypedDict, total=False):
    """Options of a call (``mesh.rpc.client.channel.MultiCallable``).

    Attributes:
        timeout: Seconds.
        metadata: Pairs of key and value.
        wait_for_ready: Wait for a connection up to the deadline.
        compression: A ``grpc.Compression``.
    """

    timeout: float | None
    metadata: CallMetadata | None
    wait_for_ready: bool | None
    compression: int | None


class StubCall(Protocol):
    """Call of an asynchronous stub, as ``grpc.aio.Call``."""

    def cancel(self) -> bool:
        """Cancel the call; return False if it had ended already."""

    def cancelled(self) -> bool:
        """Whether it was cancelled on this side."""

    def done(self) -> bool:
        """Whether it has ended."""

    def add_done_callback(self, callback: Callable[[Any], Any], /) -> None:
        """Call ``callback(call)`` when it has ended."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, or None without one."""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return the response headers."""

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Return the trailers, when the call has ended."""

    async def code(self) -> grpc.StatusCode:
        """Return the status code, when the call has ended."""

    async def details(self) -> str:
        """Return the status message, when the call has ended."""

    async def wait_for_connection(self) -> None:
        """Return when the call has a connection."""


class UnaryCall(StubCall, Awaitable[ResponseT_co], Protocol[ResponseT_co]):
    """Call with one response, which is awaited."""


class ResponseStreamCall(StubCall, Protocol[ResponseT_co]):
    """Call with a stream of responses."""

    def __aiter__(self) -> AsyncIterator[ResponseT_co]:
        """Iterate over the responses."""

    async def read(self) -> Any:
        """Return the next response, or ``grpc.aio.EOF`` at the end."""


class _RequestStreamCall(StubCall, Protocol[RequestT_contra]):
    async def write(self, request: RequestT_contra, /) -> None:
        """Send a request."""

    async def done_writing(self) -> None:
        """End the requests."""


class ClientStreamCall(
    _RequestStreamCall[RequestT_contra], Awaitable[ResponseT_co], Protocol[RequestT_contra, ResponseT_co]
):
    """Call with a stream of requests and one response, which is awaited."""


class BidirectionalCall(
    _RequestStreamCall[RequestT_contra], ResponseStreamCall[ResponseT_co], Protocol[RequestT_contra, ResponseT_co]
):
    """Call with a stream of requests and a stream of responses."""


class BlockingStubCall(Protocol):
    """Call of a blocking stub."""

    def cancel(self) -> None:
        """Cancel the call."""

    def initial_metadata(self) -> grpc.aio.Metadata:
        """Wait for the response headers and return them."""

    def trailing_metadata(self) -> grpc.aio.Metadata:
        """Wait for the end of the call and return the trailers."""

    def code(self) -> grpc.StatusCode:
        """Wait for the end of the call and return the status code."""

    def details(self) -> str:
        """Wait for the end of the call and return the status message."""


class BlockingResponseStreamCall(BlockingStubCall, Iterator[ResponseT_co], Protocol[ResponseT_co]):
    """Call of a blocking stub with a stream of responses, which is an iterator."""


# -- methods --


class UnaryMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a stub with one request and one response."""

    def __call__(self, request: RequestT_contra, /, **options: Unpack[CallOptions]) -> UnaryCall[ResponseT_co]:
        """Start the call."""


class ServerStreamMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a stub with one request and a stream of responses."""

    def __call__(self, request: RequestT_contra, /, **options: Unpack[CallOptions]) -> ResponseStreamCall[ResponseT_co]:
        """Start the call."""


class ClientStreamMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a stub with a stream of requests and one response. Without an iterator, ``write()`` sends requests."""

    def __call__(
        self,
        requests: AsyncIterable[RequestT_contra] | Iterable[RequestT_contra] | None = None,
        /,
        **options: Unpack[CallOptions],
    ) -> ClientStreamCall[RequestT_contra, ResponseT_co]:
        """Start the call."""


class BidirectionalMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a stub that streams both ways. Without an iterator, ``write()`` sends requests."""

    def __call__(
        self,
        requests: AsyncIterable[RequestT_contra] | Iterable[RequestT_contra] | None = None,
        /,
        **options: Unpack[CallOptions],
    ) -> BidirectionalCall[RequestT_contra, ResponseT_co]:
        """Start the call."""


class BlockingUnaryMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a blocking stub with one request and one response."""

    def __call__(self, request: RequestT_contra, /, **options: Unpack[CallOptions]) -> ResponseT_co:
        """Make the call and return the response."""

    def with_call(
        self, request: RequestT_contra, /, **options: Unpack[CallOptions]
    ) -> tuple[ResponseT_co, BlockingStubCall]:
        """Make the call and return the response and the call."""


class BlockingServerStreamMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a blocking stub with one request and a stream of responses."""

    def __call__(
        self, request: RequestT_contra, /, **options: Unpack[CallOptions]
    ) -> BlockingResponseStreamCall[ResponseT_co]:
        """Start the call and return the iterator of responses."""


class BlockingClientStreamMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a blocking stub with a stream of requests and one response."""

    def __call__(self, requests: Iterable[RequestT_contra], /, **options: Unpack[CallOptions]) -> ResponseT_co:
        """Make the call and return the response."""

    def with_call(
        self, requests: Iterable[RequestT_contra], /, **options: Unpack[CallOptions]
    ) -> tuple[ResponseT_co, BlockingStubCall]:
        """Make the call and return the response and the call."""


class BlockingBidirectionalMethod(Protocol[RequestT_contra, ResponseT_co]):
    """Method of a blocking stub that streams both ways."""

    def __call__(
        self, requests: Iterable[RequestT_contra], /, **options: Unpack[CallOptions]
    ) -> BlockingResponseStreamCall[ResponseT_co]:
        """Start the call and return the iterator of responses."""
