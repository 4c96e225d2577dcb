"""Verification of users in a component: the verifier of tokens and API keys, and the watches of revocations."""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from google.protobuf import json_format
from opentelemetry import context as otel_context
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context

from mesh.auth import (
    ApiKeyFile,
    ApiKeyVerifier,
    Issuer,
    Revocations,
    RevocationWatch,
    TokenVerifier,
    discover,
    fetch_url,
)
from mesh.config.auth import IssuerConfig
from mesh.config.manifest import Manifest
from mesh.contract.model import Access, Contract
from mesh.rpc.client.channel import Channel

__all__ = ["UserVerification"]

KEYS_TIMEOUT = 5.0
"""Seconds that a fetch of the token issuer's keys may take."""


class UserVerification:
    """Verification of the users of one component. Make it on the running loop.

    Args:
        manifest: The manifest.
        contract: The contract.
        channel: Channel for the mesh's own calls.

    Attributes:
        tokens: Verifier of user tokens and API keys, or None if none is accepted.
        revocations: Issuer → its revocations, for each issuer that has any.
    """

    def __init__(self, manifest: Manifest, contract: Contract, channel: Channel) -> None:
        issuers = () if manifest.auth is None else tuple(config for _, config in manifest.auth.places())
        self.revocations = {config.issuer: Revocations(config.leeway) for config in issuers if config.revocations}
        self._watches = [
            RevocationWatch(
                config.issuer,
                self.revocations[config.issuer],
                subject=config.subject,
                call=partial(_watch, contract, channel, config.revocation_path),
                closed=config.revocation_stale == "closed",
            )
            for config in issuers
            if config.revocations
        ]
        tokens = None
        if issuers:
            tokens = TokenVerifier(
                Issuer(
                    name=config.issuer,
                    audiences=config.audiences,
                    fetch=_fetch_keys(config, contract, channel),
                    subject=config.subject,
                    subject_prefix=config.subject_prefix,
                    roles=config.roles,
                    role_prefix=config.role_prefix,
                    leeway=config.leeway,
                    revocations=self.revocations.get(config.issuer),
                )
                for config in issuers
            )
        self.tokens = _with_api_keys(manifest, contract, tokens)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to watch revocations."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(watch.run(), context=_untraced()) for watch in self._watches]
        if self._watches:
            metrics.get_meter("mesh").create_observable_gauge(
                "mesh.revocations.age", [self._observe], "s", "Time since the revocations of an issuer were complete."
            )

    async def stop(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        for watch in self._watches:
            yield Observation(watch.age, {"issuer": watch.issuer})


def _untraced() -> contextvars.Context:
    """Return a context in which calls are not sampled: a stream that never ends would be a trace that only grows."""
    parent = SpanContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1, is_remote=False)
    context = contextvars.Context()
    context.run(otel_context.attach, set_span_in_context(NonRecordingSpan(parent)))
    return context


def _watch(contract: Contract, channel: Channel, path: str) -> AsyncIterator[Any]:
    method = contract.methods[path]  # `mesh check` and `mesh up` have checked that it exists
    stub = channel.unary_stream(path, None, method.output.FromString)
    return aiter(stub(b"", wait_for_ready=True))


def _with_api_keys(
    manifest: Manifest, contract: Contract, tokens: TokenVerifier | None
) -> TokenVerifier | ApiKeyVerifier | None:
    """Return the verifier of user tokens, and of API keys if a method of the contract takes them."""
    if not any(method.access is Access.KEY for method in contract.methods.values()):
        return tokens
    return ApiKeyVerifier(ApiKeyFile(manifest.state), tokens)


def _fetch_keys(issuer: IssuerConfig, contract: Contract, channel: Channel) -> Callable[[], Awaitable[bytes]]:
    """Return a function that fetches the JWK set of an issuer."""
    if not issuer.jwks:
        return discover(issuer.issuer)
    return fetch_url(issuer.jwks) if "://" in issuer.jwks else _fetch_method(contract, channel, issuer.jwks)


def _fetch_method(contract: Contract, channel: Channel, name: str) -> Callable[[], Awaitable[bytes]]:
    """Return a function that fetches the JWK set, as JSON, from a method of the mesh."""
    method = contract.methods[f"/{name.lstrip('/')}"]  # `mesh check` and `mesh up` have checked that it exists
    stub = channel.unary_unary(method.path)

    async def fetch() -> bytes:
        response = method.output.FromString(await stub(b"", timeout=KEYS_TIMEOUT))
        return json_format.MessageToJson(response).encode()

    return fetch
