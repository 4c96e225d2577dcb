"""Keys ``name`` and ``tls``, and table ``[keys]`` of mesh.toml: the mesh's identity and its encryption."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Literal

import msgspec

from mesh.address import is_loopback, split
from mesh.config.values import Duration
from mesh.faults import Fault

__all__ = ["KeysConfig", "TlsFiles", "TlsMode", "keys_faults", "local", "name_faults", "secured", "tls_faults"]

_MAX_NAME = 63
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\Z")
MIN_LEAF_LIFETIME = timedelta(minutes=5)
MAX_LEAF_LIFETIME = timedelta(days=398)
"""The lifetime that public authorities stop at."""


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[tls]``: own files of this component's certificate, in place of those that the mesh issues.

    The leaf has one URI, ``spiffe://NAME/SERVICE``. The files are read again when they change.

    Attributes:
        certificate: Leaf certificate and its chain (PEM), relative to mesh.toml.
        private_key: Its key (PEM), without a password.
        ca: Trusted root certificates (PEM).
    """

    certificate: str
    private_key: str
    ca: str


class KeysConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[keys]``: the signer, which issues the certificates where ``mesh up`` does not (``mesh keys serve``).

    Attributes:
        listen: ``host:port`` where ``mesh keys serve`` listens.
        address: ``host:port`` of the signer for the other components; ``""``: the components read certificates from the
            identity folder.
        lifetime: Validity of a leaf certificate. It is renewed at half of it.
    """

    listen: str = "127.0.0.1:9443"
    address: str = ""
    lifetime: Duration = Duration(86400)


TlsMode = Literal["auto", "on", "off"]


def name_faults(name: str, place: str) -> Iterator[Fault]:
    """Check the name of the mesh, a SPIFFE trust domain (SPIFFE-ID, 2.1).

    It is part of host names too: at most 63 characters, of which the first and the last are no punctuation.
    """
    if len(name) > _MAX_NAME or not _NAME.match(name):
        yield Fault(
            place,
            f"the name of a mesh is at most {_MAX_NAME} lower-case letters, digits, '.', '-' and '_', "
            f'a letter or digit at both ends, as in "shop"; got {name[:80]!r}',
        )


def tls_faults(tls: TlsMode | TlsFiles, place: str) -> Iterator[Fault]:
    """Check the names of the files."""
    if isinstance(tls, TlsFiles):
        for key in ("certificate", "private_key", "ca"):
            if not getattr(tls, key):
                yield Fault(f"{place} {key}", "name a PEM file")


def keys_faults(keys: KeysConfig, place: str) -> Iterator[Fault]:
    """Check the lifetime."""
    least, most = MIN_LEAF_LIFETIME, MAX_LEAF_LIFETIME
    if not least.total_seconds() <= keys.lifetime <= most.total_seconds():
        yield Fault(
            f"{place} lifetime",
            f"expected {least.total_seconds() / 60:g} minutes to {most.days} days, "
            f'as in "24h"; got {keys.lifetime:g} s',
        )


def secured(tls: TlsMode | TlsFiles, addresses: Iterable[str]) -> bool:
    """Return whether a service is reached by TLS.

    Args:
        tls: ``tls`` of mesh.toml.
        addresses: Its ``listen`` and the addresses for its clients.
    """
    if tls == "auto":
        return not all(map(local, addresses))
    return tls != "off"


def local(address: str) -> bool:
    """Return whether an address (``host:port``) is of the loopback interface. Of names only ``localhost`` is."""
    return is_loopback(split(address)[0])
