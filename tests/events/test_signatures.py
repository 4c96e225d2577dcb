"""Signatures of events: a hash tree under one signature, and whoever changes anything is noticed."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mesh.events import hash_tree, signatures
from mesh.events.hash_tree import KnownTree
from mesh.events.signatures import (
    BATCH,
    SIGNATURE,
    SIGNED_HEADERS,
    EventSigner,
    SignatureError,
    SignedMessage,
    VerificationKey,
    Verifier,
    key_id,
)

KEY = Ed25519PrivateKey.generate()
SIGNER = EventSigner("shop", KEY)


def verifier(retired: datetime | None = None) -> Verifier:
    def find(name: str, id_: str) -> VerificationKey | None:
        known = (name, id_) == ("shop", key_id(KEY.public_key()))
        return VerificationKey(KEY.public_key(), retired) if known else None

    return Verifier(find)


def message(number: int = 0) -> SignedMessage:
    headers = {name: f"{name} {number}" for name in SIGNED_HEADERS}
    return SignedMessage(f"events.a.{number}", {**headers, "other": "x"}, b"data")


def signed(count: int) -> list[SignedMessage]:
    messages = [message(number) for number in range(count)]
    return [
        one._replace(headers={**one.headers, SIGNATURE: value})
        for one, value in zip(messages, SIGNER.sign(messages), strict=True)
    ]


@given(st.integers(1, 2 * BATCH + 1), st.randoms())
def test_messages_of_a_batch_are_verified_in_any_order(count: int, random: object) -> None:
    messages = signed(count)
    random.shuffle(messages)  # type: ignore[attr-defined]
    check = verifier()
    assert {check.verify(one, 0.0) for one in messages * 2} == {"shop"}


@given(st.integers(1, 70), st.data())
def test_no_other_leaf_passes(size: int, data: st.DataObject) -> None:
    """Neither at first nor when the tree is known in part."""
    leaves = [hash_tree.leaf_of(b"%d" % number) for number in range(size)]
    levels = hash_tree.levels_of(leaves)
    tree = KnownTree(size, levels[-1][0])
    indexes = st.integers(0, size - 1)
    for index in data.draw(st.lists(indexes, max_size=5)):
        assert tree.contains(index, leaves[index], hash_tree.path_of(levels, index))
    index, at = data.draw(indexes), data.draw(indexes)
    path = hash_tree.path_of(levels, at)
    assert tree.contains(index, leaves[at], path) == (index == at)
    assert not tree.contains(index, hash_tree.leaf_of(b"other"), path)
    assert not tree.knows(index, hash_tree.leaf_of(b"other"))
    assert tree.contains(at, leaves[at], path)


def test_the_tree_is_that_of_the_rfc() -> None:
    """RFC 9162, 2.1.1, with five leaves: the left side holds four of them."""
    leaf = [sha256(b"\0" + bytes([number])).digest() for number in range(5)]

    def node(left: bytes, right: bytes) -> bytes:
        return sha256(b"\1" + left + right).digest()

    root = node(node(node(leaf[0], leaf[1]), node(leaf[2], leaf[3])), leaf[4])
    levels = hash_tree.levels_of(leaf)
    assert levels[-1] == [root]
    assert hash_tree.path_of(levels, 4) == node(node(leaf[0], leaf[1]), node(leaf[2], leaf[3]))
    assert hash_tree.root_of(4, 5, leaf[4], hash_tree.path_of(levels, 4)) == root
    assert hash_tree.root_of(4, 5, leaf[4], hash_tree.path_of(levels, 4) + root) is None


CHANGES = {
    "subject": lambda one: one._replace(subject="events.b.0"),
    "body": lambda one: one._replace(data=b"forged"),
    **{
        name: lambda one, name=name: one._replace(headers={**one.headers, name: "forged"})  # type: ignore[misc]
        for name in SIGNED_HEADERS
    },
    "a missing attribute": lambda one: one._replace(
        headers={name: value for name, value in one.headers.items() if name != "mesh-hops"}
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_what_was_changed_is_refused(change: object, count: int) -> None:
    for known in (False, True):
        check = verifier()
        messages = signed(count)
        if known:
            for one in messages:
                check.verify(one, 0.0)
        for one in messages:
            with pytest.raises(SignatureError, match="does not fit: the event was changed"):
                check.verify(change(one), 0.0)  # type: ignore[operator]


def test_text_does_not_move_between_attributes() -> None:
    (one,) = signed(1)
    moved = {**one.headers, "ce-id": one.headers["ce-id"] + "\n" + one.headers["ce-source"], "ce-source": ""}
    with pytest.raises(SignatureError):
        verifier().verify(one._replace(headers=moved), 0.0)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "it has no signature"),
        ("", "malformed"),
        ("1.shop", "malformed"),
        ("1.shop.id.1.sig.x.", "malformed"),
        ("1.shop.{key}.x.{signature}.0.", "malformed"),
        ("1.shop.{key}.1.{signature}.0.!", "malformed"),
        ("1.shop.{key}.1.{signature}.-1.", "does not fit"),
        ("1.shop.{key}.1.{signature}.1.", "does not fit"),
        ("1.shop.{key}.2.{signature}.0.", "does not fit"),
        ("1.shop.{key}.65.{signature}.0.", "a form that this version does not know"),
        ("2.shop.{key}.1.{signature}.0.", "a form that this version does not know"),
        ("1.login.{key}.1.{signature}.0.", "of 'login', which is not known here"),
        ("1.shop.0123456789abcdef.1.{signature}.0.", "key '0123456789abcdef' of 'shop', which is not known here"),
        ("1.shop.{key}.1.AAAA.0.", "does not fit"),
    ],
)
def test_other_signatures_are_refused_with_the_reason(header: str | None, reason: str) -> None:
    (one,) = signed(1)
    _, _, key, _, signature, _, _ = one.headers[SIGNATURE].split(".")
    headers = {name: value for name, value in one.headers.items() if name != SIGNATURE}
    if header is not None:
        headers[SIGNATURE] = header.format(key=key, signature=signature)
    with pytest.raises(SignatureError, match=reason):
        verifier().verify(one._replace(headers=headers), 0.0)


def test_a_retired_key_is_valid_for_what_was_stored_before() -> None:
    retired = datetime(2026, 11, 30, tzinfo=UTC)
    check = verifier(retired)
    for one in signed(3):
        assert check.verify(one, retired.timestamp() - 1) == "shop"
        with pytest.raises(SignatureError, match="signed with a key that shop gave up at 2026-11-30"):
            check.verify(one, retired.timestamp() + 1)


def test_a_key_that_is_withdrawn_refuses_the_rest_of_a_known_tree() -> None:
    keys = {"shop": VerificationKey(KEY.public_key())}
    check = Verifier(lambda name, _: keys.get(name))
    first, second, *_ = signed(3)
    assert check.verify(first, 0.0) == "shop"
    del keys["shop"]
    with pytest.raises(SignatureError, match="of 'shop', which is not known here"):
        check.verify(second, 0.0)


def test_a_verifier_forgets_old_trees() -> None:
    check = verifier()
    for _ in range(signatures.MAX_TREES + 10):
        first, *_ = signed(2)
        check.verify(first, 0.0)
    assert len(check._trees) <= signatures.MAX_TREES


def test_the_signed_text_is_no_token() -> None:
    """The key signs tokens too; a signed token begins with base64 of a JSON object."""
    assert not signatures._signed_text(1, b"eyJ").startswith(b"eyJ")
