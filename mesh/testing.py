"""Helpers for tests of services: importable stubs, and a ``Context`` for calls of functions.

A test calls a function directly. Stubs, transactions and events need a running mesh.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from mesh.auth import EDGE
from mesh.call import Call, Identity, Metadata
from mesh.context import Context, Transaction
from mesh.control.project import load
from mesh.errors import FailedPrecondition
from mesh.headers import CLIENT_ADDRESS

__all__ = ["context", "project"]

StubT = TypeVar("StubT")


def project(file: Path) -> None:
    """Make the stubs and modules of a project importable. Generates stubs that are out of date.

    Args:
        file: The mesh.toml of the project.

    Raises:
        Faults: The manifest or the contract is invalid.
    """
    load(file)


def context(
    *,
    identity: Identity | None = None,
    caller: str | None = None,
    metadata: Iterable[tuple[str, str | bytes]] = (),
    settings: Mapping[str, Any] | None = None,
    client_address: str | None = None,
) -> Context:
    """Return the context of a call without a network.

    Args:
        identity: The user, ``context.identity``.
        caller: The calling service, ``context.caller``.
        metadata: The caller's metadata, ``context.metadata``.
        settings: ``context.settings``.
        client_address: ``context.client_address``, of a call that came through the edge.
    """
    call = Call(None, Metadata(metadata))
    call.identity = identity
    call.caller = caller
    if client_address is not None:
        call.caller = caller or EDGE
        call.metadata.append(CLIENT_ADDRESS, client_address.encode())
    return Context(call, _TestService(settings or {}))


class _TestService:
    """Service without a mesh."""

    name = "test"
    log = logging.getLogger("test")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def stub(self, stub_class: type[StubT]) -> StubT:
        raise FailedPrecondition(f"{stub_class.__name__} needs a running mesh")

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        raise FailedPrecondition("a transaction needs a running mesh")

    async def publish(self, event: Message) -> None:
        raise FailedPrecondition(f"publishing {event.DESCRIPTOR.full_name} needs a running mesh")
