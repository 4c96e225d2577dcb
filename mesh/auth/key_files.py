"""Key files of service identity: an Ed25519 pair for each service.

The files are ``NAME.key`` (PEM, private, mode 0600) and ``NAME.pub`` (PEM, public). ``mesh up`` creates them. In
containers the folder is mounted, and a service has its own ``.key`` and the ``.pub`` of all. ``ensure`` replaces no
existing private key.

``retire`` gives a service a new identity. Its old public key stays in ``retired/NAME.TIME.pub``, because events that it
signed before that time are verified for as long as the broker keeps them. Deleting that file withdraws the key.

Running components look at the files once a second (``FolderWatch``). Verifiers take changes at once. The service
signs with its new key ``TAKE_DELAY`` later, when verifiers have it. They accept the old one in service tokens for
``OVERLAP``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.faults import Fault, Faults

__all__ = [
    "OVERLAP", "FolderWatch", "RetiredKey", "ensure", "load", "load_public", "load_retired", "retire", "share",
    "watch_private",
]  # fmt: skip

log = logging.getLogger("mesh.auth")

LOOK_INTERVAL = 1.0
"""Seconds between two looks at the files."""
TAKE_DELAY = 3.0
"""Seconds from the change of a private key until its service signs with it."""
OVERLAP = timedelta(seconds=15)
"""Time for which a retired key is accepted in service tokens."""
RETIRED = "retired"
"""Folder of the public keys that no longer sign."""
_TIME = "%Y%m%dT%H%M%SZ"


class RetiredKey(NamedTuple):
    """Public key that no longer signs.

    Attributes:
        name: The service.
        key: The key.
        retired: Time from which another key signs.
    """

    name: str
    key: Ed25519PublicKey
    retired: datetime


class FolderWatch:
    """Notices changes of the public keys, those in use and the retired ones.

    Args:
        folder: Folder of the files.
        clock: The time, seconds.
    """

    __slots__ = ("_clock", "_folder", "_looked_at", "_version")

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._version = self._look()
        self._looked_at = clock()

    def changed(self, now: float | None = None) -> bool:
        """Return whether a file has changed since the last call. It looks once a second.

        Args:
            now: The time by the clock, if it is known.
        """
        if now is None:
            now = self._clock()
        if 0 <= now - self._looked_at < LOOK_INTERVAL:  # or the clock went back
            return False
        self._looked_at = now
        version = self._look()
        changed, self._version = version != self._version, version
        return changed

    def repeat(self) -> None:
        """Report the last change again, because the files could not be read."""
        self._version = frozenset()

    def _look(self) -> frozenset[tuple[object, ...]]:
        return frozenset(found for folder in (self._folder, self._folder / RETIRED) for found in _versions(folder))


def _versions(folder: Path) -> list[tuple[object, ...]]:
    try:
        with os.scandir(folder) as entries:
            return [(entry.path, *_version(Path(entry.path))) for entry in entries if entry.name.endswith(".pub")]
    except OSError:
        return []


def _version(path: Path) -> tuple[int, ...]:
    """Return a value that differs after a file was replaced or written; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


async def watch_private(
    folder: Path, name: str, known: Ed25519PrivateKey, *take: Callable[[Ed25519PrivateKey], None]
) -> None:
    """Give a service's new private key to those that sign with it, until the task is cancelled.

    Args:
        folder: Folder of the key files.
        name: The service.
        known: The key that they have. It may have been replaced since it was read: a component takes seconds to start.
        take: Called with each new key.
    """
    path = folder / f"{name}.key"
    version: tuple[int, ...] = ()
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        if _version(path) in (version, ()):
            continue
        await asyncio.sleep(TAKE_DELAY)
        version = _version(path)
        try:
            key = load(folder, name)
        except Faults as faults:
            log.error("the new identity key is not taken: %s", faults)  # noqa: TRY400 - it says all
            continue
        if key.private_bytes_raw() == known.private_bytes_raw():
            continue
        known = key
        for one in take:
            one(key)
        log.info("%s signs with its new identity key", name)


def ensure(folder: Path, names: Iterable[str]) -> None:
    """Create the missing key pairs. Several processes may do so at once.

    A name with a ``.pub`` and without a ``.key`` is skipped, since its private key is elsewhere.

    Args:
        folder: Folder of the files. It is created (mode 0700) if it is missing.
        names: Names of services, and ``edge``.

    Raises:
        Faults: The folder cannot be written, or an existing key cannot be read.
    """
    missing = [name for name in names if not (folder / f"{name}.pub").is_file()]
    if not missing:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in missing:
            private = folder / f"{name}.key"
            if not private.exists():
                _create(private, _private_pem(Ed25519PrivateKey.generate()), 0o600)
            # Of several processes one was first. The public key must fit the private key that exists now.
            _create(folder / f"{name}.pub", _public_pem(load(folder, name).public_key()), 0o644)
    except OSError as error:
        raise Faults([Fault(str(folder), f"the identity keys cannot be made: {_reason(error)}")]) from None


def share(folders: Mapping[str, Path]) -> None:
    """Copy all public keys into each folder, those in use and the retired ones. An outdated copy is replaced.

    Args:
        folders: Name → folder with its key pair, as created by ``ensure``.

    Raises:
        Faults: A folder cannot be read or written.
    """
    for name, folder in folders.items():
        path = own = folder / f"{name}.pub"
        try:
            # The retired ones first: verifiers that read meanwhile must not miss both.
            for path in (*sorted((folder / RETIRED).glob(f"{name}.*.pub")), own):
                public = path.read_bytes()
                for copy in (other / path.relative_to(folder) for other in folders.values()):
                    if not copy.exists() or copy.read_bytes() != public:
                        copy.unlink(missing_ok=True)
                        copy.parent.mkdir(mode=0o700, exist_ok=True)
                        _create(copy, public, 0o644)
        except OSError as error:
            raise Faults([Fault(str(path), f"the identity keys cannot be shared: {_reason(error)}")]) from None


def retire(folder: Path, name: str, now: datetime) -> Path:
    """Give a service a new key pair, and keep its old public key; return the file of that one.

    Args:
        folder: Folder with its key pair.
        name: The service.
        now: The time from which the old key no longer signs.

    Raises:
        Faults: There is no such pair, or the folder cannot be written.
    """
    public, private = folder / f"{name}.pub", folder / f"{name}.key"
    load(folder, name)
    old = folder / RETIRED / f"{name}.{now.astimezone(UTC).strftime(_TIME)}.pub"
    try:
        old.parent.mkdir(mode=0o700, exist_ok=True)
        _create(old, public.read_bytes(), 0o644)
        private.unlink()
        public.unlink()
    except OSError as error:
        raise Faults([Fault(str(folder), f"the key of {name} cannot be replaced: {_reason(error)}")]) from None
    ensure(folder, [name])
    return old


def load_retired(folder: Path) -> list[RetiredKey]:
    """Return the public keys that no longer sign.

    Raises:
        Faults: A file is unreadable, or its name or content is malformed.
    """
    found = []
    for path in sorted((folder / RETIRED).glob("*.pub")):
        name, _, time = path.stem.rpartition(".")
        try:
            retired = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
        except ValueError:
            raise Faults([Fault(str(path), "expected a name such as login.20261130T120000Z.pub")]) from None
        found.append(RetiredKey(name, _load_public(path), retired))
    return found


def load(folder: Path, name: str) -> Ed25519PrivateKey:
    """Return the private key of a service.

    Raises:
        Faults: It is missing, unreadable, or not an Ed25519 key in PEM; or ``NAME.pub`` beside it belongs to another
            key, so that nobody would accept what it signs.
    """
    path, public = folder / f"{name}.key", folder / f"{name}.pub"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        hint = "; mesh up makes it, a container needs it mounted" if isinstance(error, FileNotFoundError) else ""
        raise Faults([Fault(str(path), f"the identity key of {name} cannot be read: {_reason(error)}{hint}")]) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise Faults([Fault(str(path), "expected an Ed25519 private key in PEM (PKCS #8) without a password")])
    try:
        fits = not public.is_file() or _load_public(public) == key.public_key()
    except OSError as error:
        raise Faults([Fault(str(public), f"the public key cannot be read: {_reason(error)}")]) from None
    if not fits:
        text = f"it is not the public key of {path.name}: restore the pair, or remove both to make a new one"
        raise Faults([Fault(str(public), text)])
    return key


def load_public(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Return the public keys of all services by name.

    Raises:
        Faults: The folder or a file is unreadable, or a file is not an Ed25519 public key in PEM.
    """
    found: dict[str, Ed25519PublicKey] = {}
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix != ".pub":
                continue
            found[path.stem] = _load_public(path)
    except OSError as error:
        raise Faults([Fault(str(path), f"the identity keys cannot be read: {_reason(error)}")]) from None
    return found


def _load_public(path: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise Faults([Fault(str(path), "expected an Ed25519 public key in PEM")])
    return key


def _create(path: Path, content: bytes, mode: int) -> None:
    """Create a file atomically. Keep a file that another process has created meanwhile."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(mode)
        try:
            os.link(fresh, path)
        except FileExistsError:
            return
    finally:
        fresh.unlink()


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
