"""Encrypted secrets of a mesh on one machine: a file in the state folder, written by ``mesh secrets set``.

The values are encrypted with Fernet (AES-128-CBC and HMAC-SHA256, of ``cryptography``). The key is that of the variable
``MESH_SECRETS_KEY``, else that of a file beside, which the first ``set`` makes. The file of secrets can be copied,
backed up and committed as long as the key is elsewhere.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import private_files
from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

__all__ = ["KEY_VARIABLE", "SecretStore"]

KEY_VARIABLE = "MESH_SECRETS_KEY"
"""Environment variable with the key: 32 bytes as URL-safe base64, as ``Fernet.generate_key`` makes them."""


class SecretStore:
    """Secrets in ``FOLDER/secrets``, with their key in the environment or in ``FOLDER/secrets.key``.

    Args:
        folder: The state folder of the mesh.
        environ: The environment.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._file = folder / "secrets"
        self._key_file = folder / "secrets.key"
        self._environ = environ

    def names(self) -> list[str]:
        """Return the names of the secrets, sorted.

        Raises:
            Faults: The file cannot be read.
        """
        return sorted(self._read())

    def get(self, name: str) -> str | None:
        """Return a secret, or None if the file has none of this name.

        Raises:
            Faults: The file or the key cannot be read, or the key is another one.
        """
        token = self._read().get(name)
        if token is None:
            return None
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - commands without secrets start sooner

        try:
            return self._cipher(create=False).decrypt(token.encode()).decode()
        except InvalidToken:
            text = f"the secret {name!r} is encrypted with another key than that of {self._key_place()}"
            raise Faults([Fault(str(self._file), text)]) from None

    def set(self, name: str, value: str) -> None:
        """Store a secret.

        Raises:
            Faults: A file cannot be read or written.
        """
        with self._locked():
            secrets = self._read()
            secrets[name] = self._cipher(create=True).encrypt(value.encode()).decode()
            self._write(secrets)

    def remove(self, name: str) -> bool:
        """Remove a secret; return whether there was one.

        Raises:
            Faults: The file cannot be read or written.
        """
        if not self._file.exists():
            return False
        with self._locked():
            secrets = self._read()
            found = secrets.pop(name, None) is not None
            if found:
                self._write(secrets)
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file, so that two commands at once lose no secret."""
        try:
            private_files.make_folder(self._file.parent)
            with open(self._file.with_suffix(".lock"), "a", opener=private_files.opener) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise Faults([Fault(str(self._file), f"cannot be written: {_reason(error)}")]) from None

    def _key_place(self) -> str:
        return f"the variable {KEY_VARIABLE}" if KEY_VARIABLE in self._environ else str(self._key_file)

    def _cipher(self, *, create: bool) -> Fernet:
        from cryptography.fernet import Fernet  # noqa: PLC0415 - as above

        key = self._environ.get(KEY_VARIABLE)
        try:
            if key is None and create and not self._key_file.exists():
                private_files.write_new(self._key_file, Fernet.generate_key())
            return Fernet(self._key_file.read_bytes().strip() if key is None else key)
        except ValueError:
            text = "expected a key of 32 bytes as URL-safe base64"
            raise Faults([Fault(self._key_place(), text)]) from None
        except OSError as error:
            text = f"the key of the secrets cannot be used: {_reason(error)}; set {KEY_VARIABLE} if it is elsewhere"
            raise Faults([Fault(self._key_place(), text)]) from None

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Faults([Fault(str(self._file), f"cannot be read: {_reason(error)}")]) from None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not all(isinstance(token, str) for token in found.values()):
            raise Faults([Fault(str(self._file), "is not a file of `mesh secrets`: expected a JSON object of texts")])
        return found

    def _write(self, secrets: Mapping[str, str]) -> None:
        private_files.replace_file(self._file, json.dumps(secrets, indent=1, sort_keys=True).encode() + b"\n")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
