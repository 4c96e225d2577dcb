"""Types of functions, for type checkers: the protocols of ``mesh generate`` (``LoginFunctions``) are made of them.

A function is ``async def`` or ``def``. Each type is the union of what the two kinds may be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeAlias, TypeVar

from mesh.context import Context

__all__ = ["BidirectionalFunction", "ClientStreamFunction", "Response", "Responses"]

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

Response: TypeAlias = Awaitable[ResponseT] | ResponseT
"""Result of a function with one response."""
Responses: TypeAlias = AsyncIterator[ResponseT] | Iterator[ResponseT]
"""Result of a function that yields responses."""
ClientStreamFunction: TypeAlias = (
    Callable[[AsyncIterator[RequestT], Context], Awaitable[ResponseT]]
    | Callable[[Iterator[RequestT], Context], ResponseT]
)
"""Function with a stream of requests and one response."""
BidirectionalFunction: TypeAlias = (
    Callable[[AsyncIterator[RequestT], Context], AsyncIterator[ResponseT]]
    | Callable[[Iterator[RequestT], Context], Iterator[ResponseT]]
)
"""Function with a stream of requests that yields responses."""
