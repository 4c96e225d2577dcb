"""Signatures of events: the publisher signs what it publishes, because the broker names no publisher.

A signature covers the subject, the attributes that the mesh reads (``SIGNED_HEADERS``) and the body. Messages that are
published together share one Ed25519 signature, over the root of a hash tree with one leaf for each. A signature costs
the time of a whole delivery (about 0.1 ms to verify), a leaf 1 % of it.

The header ``mesh-signature`` holds, with dots between them: the version ``1``, the signer, the id of its key, the
number of leaves, the signature, the index of the leaf, and its path (base64). The signed text begins with a line that
no other protocol of the mesh signs, because the key is that of the service's identity, which signs tokens too.

The signer is the service that is the event's source, or ``operator`` for what a person publishes, redrives or replays.
The signer of a message proves nothing about its rights: ``mesh.events.consume.verification`` checks them.
"""

from __future__ import annotations

import binascii
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.events import hash_tree
from mesh.events.hash_tree import KnownTree

__all__ = [
    "OPERATOR",
    "SIGNATURE",
    "EventSigner",
    "FindKey",
    "SignatureError",
    "SignedMessage",
    "VerificationKey",
    "Verifier",
    "key_id",
]

SIGNATURE = "mesh-signature"
"""Header with the signature."""
OPERATOR = "operator"
"""EventSigner of what a person publishes, redrives or replays."""
SIGNED_HEADERS = (
    "ce-id", "ce-source", "ce-type", "ce-time", "ce-subject", "ce-traceparent", "ce-tracestate", "mesh-hops",
    "mesh-replay-of", "mesh-tick-due",
)  # fmt: skip
"""Headers that are signed, in the order of their values in the signed text. A missing one counts as empty."""
BATCH = 64
"""Leaves of one tree at most. More make the path in each header longer, and each signature cheaper."""
MAX_TREES = 256
"""Trees whose nodes a verifier keeps."""
_VERSION = "1"
_CONTEXT = b"function-mesh events 1\n"


class SignatureError(Exception):
    """A message has no valid signature; the text says why."""


class SignedMessage(NamedTuple):
    """Content that a signature covers.

    Attributes:
        subject: The subject.
        headers: All headers.
        data: The body.
    """

    subject: str
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """Public key of a signer.

    Attributes:
        key: The key.
        retired: Time from which another key signs; None: it is in use.
    """

    key: Ed25519PublicKey
    retired: datetime | None = None


FindKey = Callable[[str, str], VerificationKey | None]
"""Returns the key of a signer with this id, or None."""


def key_id(key: Ed25519PublicKey) -> str:
    """Return the id of a key: the first 64 bits of its SHA-256, in hexadecimal digits."""
    return sha256(key.public_bytes_raw()).hexdigest()[:16]


class EventSigner:
    """EventSigner of what one component publishes.

    Args:
        name: The service's name in mesh.toml, or ``OPERATOR``.
        key: Its identity key.

    Attributes:
        key_id: The id of the key that signs now.
    """

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._name = name
        self.use(key)

    def use(self, key: Ed25519PrivateKey) -> None:
        """Sign with another key from now on."""
        self._key = key
        self.key_id = key_id(key.public_key())
        self._prefix = f"{_VERSION}.{self._name}.{self.key_id}"

    def sign(self, messages: Sequence[SignedMessage]) -> list[str]:
        """Return the values of the header ``SIGNATURE`` for messages that are published together."""
        return [value for at in range(0, len(messages), BATCH) for value in self._sign_batch(messages[at : at + BATCH])]

    def _sign_batch(self, messages: Sequence[SignedMessage]) -> list[str]:
        levels = hash_tree.levels_of([_leaf(message) for message in messages])
        signature = _base64(self._key.sign(_signed_text(len(messages), levels[-1][0])))
        tree = f"{self._prefix}.{len(messages)}.{signature}"
        return [f"{tree}.{at}.{_base64(hash_tree.path_of(levels, at))}" for at in range(len(messages))]


class Verifier:
    """Verifier of signatures. It verifies the signature of a tree once, while it remembers the tree.

    Args:
        find: Finds the key of a signer.
    """

    def __init__(self, find: FindKey) -> None:
        self._find = find
        self._trees: dict[str, tuple[str, str, KnownTree]] = {}

    def verify(self, message: SignedMessage, stored: datetime | float) -> str:
        """Return the name of the signer.

        Args:
            message: The message.
            stored: Time at which the broker stored it. A retired key is not accepted for later messages.

        Raises:
            SignatureError: The message is unsigned, or its signature is not valid.
        """
        header = message.headers.get(SIGNATURE)
        if header is None:
            raise SignatureError("it has no signature")
        try:
            tree, position, path = header.rsplit(".", 2)
            index = int(position)
        except ValueError:
            raise SignatureError("its signature is malformed") from None
        leaf = _leaf(message)
        found = self._trees.get(tree)
        if found is None:
            found = self._new_tree(tree, index, leaf, path)
        elif not found[2].knows(index, leaf) and not found[2].contains(index, leaf, _bytes(path)):
            raise SignatureError(f"the signature of {found[0]} does not fit: the event was changed")
        signer, id_, _ = found
        key = self._find(signer, id_)  # again for a known tree: the key may have been retired or withdrawn since
        if key is None:
            raise SignatureError(_unknown(signer, id_))
        if key.retired is not None:
            at = stored if isinstance(stored, float | int) else stored.timestamp()
            if at > key.retired.timestamp():
                raise SignatureError(f"it is signed with a key that {signer} gave up at {key.retired.isoformat()}")
        return signer

    def _new_tree(self, tree: str, index: int, leaf: bytes, path: str) -> tuple[str, str, KnownTree]:
        """Verify the signature of a tree by one of its leaves."""
        try:
            version, signer, id_, count, signature = tree.split(".")
            size = int(count)
        except ValueError:
            raise SignatureError("its signature is malformed") from None
        if version != _VERSION or not 0 < size <= BATCH:
            raise SignatureError("its signature has a form that this version does not know")
        key = self._find(signer, id_)
        if key is None:
            raise SignatureError(_unknown(signer, id_))
        root = hash_tree.root_of(index, size, leaf, _bytes(path))
        if root is None or not _fits(key.key, _bytes(signature), _signed_text(size, root)):
            raise SignatureError(f"the signature of {signer} does not fit: the event was changed")
        found = signer, id_, KnownTree(size, root)
        if size > 1:
            if len(self._trees) >= MAX_TREES:
                del self._trees[next(iter(self._trees))]
            self._trees[tree] = found
        return found


def _fits(key: Ed25519PublicKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _unknown(signer: str, id_: str) -> str:
    return f"it is signed with key {id_[:16]!r} of {signer[:80]!r}, which is not known here"


def _leaf(message: SignedMessage) -> bytes:
    """Return the leaf: subject and signed headers, each on a line, and the body behind them.

    The values have no line breaks, which NATS refuses in headers and subjects.
    """
    get = message.headers.get
    lines = "\n".join([message.subject, *[get(name, "") for name in SIGNED_HEADERS], ""])
    return hash_tree.leaf_of(lines.encode("utf-8", "surrogateescape") + message.data)


def _signed_text(size: int, root: bytes) -> bytes:
    return b"%s%d\n%s" % (_CONTEXT, size, root)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise SignatureError("its signature is malformed") from None
