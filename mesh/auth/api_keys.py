"""API keys: random bearer tokens of programs, stored as hashes in a file that every component reads as it changes.

A key is 32 random bytes, so its SHA-256 is as good as the key is long. A slow hash such as argon2 protects passwords,
which can be guessed; nobody guesses 256 random bits, and a slow hash would cost every call a tenth of a second.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from mesh import private_files
from mesh.call import Identity
from mesh.config.values import Rate
from mesh.errors import StatusError, Unauthenticated
from mesh.layers.deadline import cancel_with
from mesh.layers.timer_wheel import TaskTimeout

if TYPE_CHECKING:
    from mesh.auth.user_tokens import TokenVerifier
    from mesh.call import Call, Handler, Layer

__all__ = ["ApiKey", "ApiKeyFile", "ApiKeyVerifier", "end_with_key"]

log = logging.getLogger("mesh.auth")

PREFIX = "mesh_"
"""Start of every key, by which people and scanners of secrets know it. A JWT begins with ``ey``."""
SUBJECT_PREFIX = "key:"
"""Text before the name of a key in ``Identity.subject``, so that it is not taken for a user's subject."""
READ_INTERVAL = 1.0
"""Seconds between two looks at the file. A revoked key is refused after so long."""
_KEY_BYTES = 32
_BEARER = b"bearer "
_WIRE_PREFIX = PREFIX.encode()


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A stored key.

    Attributes:
        name: Its unique name.
        hash: SHA-256 of the key, hexadecimal.
        scopes: Its scopes.
        created: Time of creation, seconds since the epoch.
        expires: Time from which it is refused, seconds since the epoch; None: never.
        rate: Its rate limit at the edge, as in mesh.toml (``"10/s burst 50"``); empty: none of its own.
    """

    name: str
    hash: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None = None
    rate: str = ""

    def __post_init__(self) -> None:
        """Check the rate.

        Raises:
            ValueError: It is none.
        """
        if self.rate:
            Rate.parse(self.rate)


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[ApiKey, ...] = ()


class ApiKeyFile:
    """File of API keys. It is replaced by a rename, in a folder of its own: a mounted folder shows the new file.

    Args:
        state: The state folder of the mesh.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / "api-keys" / "keys.json"

    def read(self) -> tuple[ApiKey, ...]:
        """Return the keys; none if there is no file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no file of API keys.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Content).keys
        except FileNotFoundError:
            return ()
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"not a file of `mesh apikeys`: {error}") from None

    def create(
        self, name: str, scopes: tuple[str, ...], *, now: float, expires: float | None, rate: str = ""
    ) -> str | None:
        """Store a new key and return it; None if there is one of this name.

        Raises:
            OSError: The file cannot be read or written.
            ValueError: It is no file of API keys, or ``rate`` is no rate.
        """
        with self._locked():
            keys = self.read()
            if any(key.name == name for key in keys):
                return None
            text = PREFIX + secrets.token_urlsafe(_KEY_BYTES)
            key = ApiKey(name=name, hash=_hash(text), scopes=scopes, created=now, expires=expires, rate=rate)
            self._write((*keys, key))
        return text

    def revoke(self, name: str) -> bool:
        """Remove a key; return whether there was one.

        Raises:
            OSError: The file cannot be read or written.
            ValueError: It is no file of API keys.
        """
        with self._locked():
            keys = self.read()
            left = tuple(key for key in keys if key.name != name)
            if len(left) < len(keys):
                self._write(left)
        return len(left) < len(keys)

    def _write(self, keys: tuple[ApiKey, ...]) -> None:
        private_files.replace_file(self.path, msgspec.json.format(msgspec.json.encode(_Content(keys))))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands out: none of them may write back a key that this one removes."""
        private_files.make_folder(self.path.parent)
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class ApiKeyVerifier:
    """Verifier of API keys in ``authorization: Bearer mesh_…``; it passes other credentials to that of user tokens.

    Args:
        file: The keys.
        tokens: Verifier of user tokens, or None if no user token is accepted.
        clock: The time, seconds since the epoch.
        monotonic: Monotonic clock, seconds.
    """

    __slots__ = (
        "_clock", "_file", "_identities", "_monotonic", "_rates", "_read_at", "_seen", "_streams", "_timer", "_tokens",
    )  # fmt: skip

    def __init__(
        self,
        file: ApiKeyFile,
        tokens: TokenVerifier | None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._tokens = tokens
        self._clock = clock
        self._monotonic = monotonic
        self._identities: dict[str, Identity] = {}
        self._rates: dict[str, Rate] = {}
        self._streams: dict[TaskTimeout, Identity] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._read_at = float("-inf")
        self._seen: tuple[int, ...] | None = None

    def known(self, credentials: bytes) -> Identity | None:
        """Return the caller of credentials if that needs no waiting, else None."""
        if credentials[len(_BEARER) : len(_BEARER) + len(_WIRE_PREFIX)] != _WIRE_PREFIX:
            return None if self._tokens is None else self._tokens.known(credentials)
        return self._find(credentials)

    async def verify(self, credentials: bytes) -> Identity:
        """Verify credentials and return their caller.

        Raises:
            Unauthenticated: They are neither a valid API key nor a valid token. The message has the reason.
            Unavailable: The issuer's keys cannot be fetched.
        """
        if credentials[len(_BEARER) : len(_BEARER) + len(_WIRE_PREFIX)] == _WIRE_PREFIX:
            found = self._find(credentials)
            if found is None:
                raise Unauthenticated("the API key is unknown, expired or revoked")
            return found
        if self._tokens is None:
            raise Unauthenticated("no user tokens are accepted here; call with an API key, or without `authorization`")
        return await self._tokens.verify(credentials)

    def rate_of(self, subject: str) -> Rate | None:
        """Return the rate limit of a key, by its subject; None if it has none of its own."""
        return self._rates.get(subject)

    async def run_stream(self, call: Call, next: Handler) -> None:
        """Run the rest of the chain, and cancel it when the key of its caller is revoked.

        Raises:
            Unauthenticated: It was revoked.
        """
        assert call.identity is not None  # noqa: S101 - as for ``end_with_key``
        task = call.task or asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task here
        stream = TaskTimeout(task)
        self._streams[stream] = call.identity
        if self._timer is None:
            self._watch()
        try:
            await cancel_with(stream, call, next, _revoked)
        finally:
            self._streams.pop(stream, None)

    def _watch(self) -> None:
        """Look at the file while there are streams."""
        self._timer = None
        self._look()
        if self._streams:
            self._timer = asyncio.get_running_loop().call_later(READ_INTERVAL, self._watch)

    def _look(self) -> None:
        now = self._monotonic()
        if now - self._read_at >= READ_INTERVAL:
            self._read_at = now
            self._read()

    def _find(self, credentials: bytes) -> Identity | None:
        self._look()
        if credentials[: len(_BEARER)].lower() != _BEARER:
            return None
        found = self._identities.get(hashlib.sha256(credentials[len(_BEARER) :]).hexdigest())
        return None if found is None or found.claims.get("exp", float("inf")) <= self._clock() else found

    def _read(self) -> None:
        """Read the file if it has changed. One that cannot be read opens nothing."""
        try:
            status = self._file.path.stat()
            seen: tuple[int, ...] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        except OSError:
            seen = ()
        if seen == self._seen:
            return
        try:
            keys = self._file.read()
        except (OSError, ValueError) as error:
            log.error("no API key is accepted: %s: %s", self._file.path, error)  # noqa: TRY400 - the reason is enough
            keys = ()
        self._seen = seen
        # A key that stays the same stays the same object, by which its streams know it.
        old = self._identities
        fresh = {key.hash: _identity(key) for key in keys}
        self._identities = {
            hash_: old[hash_] if old.get(hash_) == identity else identity for hash_, identity in fresh.items()
        }
        self._rates = {SUBJECT_PREFIX + key.name: Rate.parse(key.rate) for key in keys if key.rate}
        left = {id(identity) for identity in self._identities.values()}
        for stream in [one for one, identity in self._streams.items() if id(identity) not in left]:
            del self._streams[stream]
            stream.expire()


def end_with_key(keys: ApiKeyVerifier) -> Layer:
    """Return the layer, inside ``authenticate``, that cancels a stream when the API key of its caller is revoked.

    The status is UNAUTHENTICATED. ``end_with_token`` is for keys that expire.
    """

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        by_key = call.identity is not None and call.identity.scopes is not None
        return keys.run_stream(call, next) if by_key else next(call)

    return layer


def _revoked() -> StatusError:
    return Unauthenticated("the API key was revoked")


def _identity(key: ApiKey) -> Identity:
    claims = {} if key.expires is None else {"exp": key.expires}
    return Identity(SUBJECT_PREFIX + key.name, claims=MappingProxyType(claims), scopes=frozenset(key.scopes))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
