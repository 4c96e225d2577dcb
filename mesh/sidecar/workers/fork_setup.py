"""What the sidecar tells the fork server once, and every worker knows from its fork."""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.config.lambda_function import LambdaFunction

__all__ = ["GRACE", "Setup"]

GRACE = 2.0
"""Seconds that a function may go on after its call was cancelled."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """One service, as its workers host it.

    Attributes:
        name: Its name in mesh.toml.
        module: The module of its functions; imported in each worker, never before the fork.
        function: The Lambda function that it is, or None.
        serves: Full names of the services of the contract that it serves.
        files: The contract: a serialized ``FileDescriptorSet``.
        path: ``sys.path``.
        services: Full names of all services of the contract.
        preload: Modules to import before the first fork.
        settings: ``[services.NAME.settings]``.
        database: Its URL, or "".
        events: It has to do with events: what it publishes goes to its outbox, or through the sidecar.
        concurrency: Calls that one worker answers at once.
        bytecode: Where the compiled modules of the project are kept; "" leaves it to Python. Where the environment
            forbids to write any, as images do, each worker would compile the project anew.
        encoding: Of standard output and error, as in the sidecar; "" leaves it to Python.
    """

    name: str
    module: str
    serves: tuple[str, ...]
    files: bytes
    path: tuple[str, ...]
    services: tuple[str, ...] = ()
    function: LambdaFunction | None = None
    preload: tuple[str, ...] = ()
    settings: dict[str, Any] = {}
    database: str = ""
    events: bool = False
    concurrency: int = 16
    bytecode: str = ""
    encoding: str = ""
