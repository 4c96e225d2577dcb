"""For the tests of a service: its stubs importable, and a ``Context`` to call its functions with.

A function is a plain function, so its test calls it. What needs the mesh around it (a stub, a database, events) is
tested against a running mesh.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from mesh.call import Call, Identity, Metadata
from mesh.context import Context, Transaction
from mesh.control.project import load
from mesh.errors import FailedPrecondition

__all__ = ["context", "project"]

StubT = TypeVar("StubT")


def project(file: Path) -> None:
    """Make the stubs and modules of a project importable, generating what is not current.

    Args:
        file: Its mesh.toml.

    Raises:
        Faults: Of the manifest or the contract.
    """
    load(file)


def context(
    *,
    identity: Identity | None = None,
    caller: str | None = None,
    metadata: Iterable[tuple[str, str | bytes]] = (),
    settings: Mapping[str, Any] | None = None,
) -> Context:
    """Return the context of a call that no network has seen.

    Args:
        identity: The user, as ``context.identity``.
        caller: The calling service, as ``context.caller``.
        metadata: The caller's metadata.
        settings: ``context.settings``.
    """
    call = Call(None, Metadata(metadata))
    call.identity = identity
    call.caller = caller
    return Context(call, _Alone(settings or {}))


class _Alone:
    """A service with nothing around it."""

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
