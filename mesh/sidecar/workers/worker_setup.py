"""Worker setup: one service as its workers host it, sent to the fork server once and inherited by every fork."""

from __future__ import annotations

from typing import Any

import msgspec

from mesh.config.lambda_function import LambdaFunction

__all__ = ["WorkerSetup"]


class WorkerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """One service, as its workers host it.

    Attributes:
        name: Its name in mesh.toml.
        module: The module of its functions; imported in each worker, never before the fork.
        function: Its Lambda function; None for a service that is none.
        serves: Full names of the contract's services that it serves.
        files: The contract as a serialized ``FileDescriptorSet``.
        path: ``sys.path``.
        services: Full names of all services of the contract.
        preload: Modules to import before the first fork.
        settings: ``[services.NAME.settings]``.
        database: URL of its database, or "".
        events: Whether the service publishes or receives events. Its events go to its outbox, or through the sidecar.
        concurrency: Calls that one worker serves at once.
        bytecode: Folder for the compiled modules of the project; "" leaves it to Python. Where the environment forbids
            to write bytecode, as images do, each worker would compile the project again.
        encoding: Encoding of standard output and error, as in the sidecar; "" leaves it to Python.
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
