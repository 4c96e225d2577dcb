"""NKEY files: the Ed25519 key pair with which a component authenticates to nats-server.

The server has public keys only, so its configuration holds no secret. The client signs a random text of the server. The
pair is another one than that of the service's identity: a server that chooses the text could otherwise have tokens or
events signed by it. ``NAME.nkey`` holds the seed (mode 0600).

Source: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable
from pathlib import Path

import nkeys

from mesh import private_files
from mesh.faults import Fault, Faults

__all__ = ["ensure", "path_of", "public"]

SEED_BYTES = 32


def path_of(folder: Path, name: str) -> Path:
    """Return the path of a component's seed; ``name``: a service of mesh.toml, or ``operator``."""
    return folder / f"{name}.nkey"


def ensure(folder: Path, names: Iterable[str]) -> None:
    """Create the missing files. Several processes may do so at once; no existing file is replaced.

    Args:
        folder: Their folder. It is created (mode 0700) if it is missing.
        names: Names of components.

    Raises:
        Faults: The folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            path = path_of(folder, name)
            if not path.exists():
                seed = nkeys.encode_seed(secrets.token_bytes(SEED_BYTES), nkeys.PREFIX_BYTE_USER)
                with contextlib.suppress(FileExistsError):  # another process was first
                    private_files.write_new(path, seed)
    except OSError as error:
        text = f"the broker keys cannot be made: {(error.strerror or str(error)).lower()}"
        raise Faults([Fault(str(folder), text)]) from None


def public(folder: Path, name: str) -> str:
    """Return the public key of a component, as nats-server's configuration has it (``U…``).

    Raises:
        Faults: The file cannot be read, or holds no seed.
    """
    path = path_of(folder, name)
    try:
        pair = nkeys.from_seed(bytearray(path.read_bytes().strip()))
        return bytes(pair.public_key).decode()
    except OSError as error:
        text = f"the broker key of {name} cannot be read: {(error.strerror or str(error)).lower()}"
        raise Faults([Fault(str(path), text)]) from None
    except (nkeys.NkeysError, ValueError):
        raise Faults([Fault(str(path), "expected the seed of an NKEY of a user (SU…)")]) from None
