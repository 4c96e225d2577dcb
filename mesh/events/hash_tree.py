"""Hash tree: one signature for many messages, of which each can be checked alone. Pure.

The tree is that of RFC 9162, 2.1: SHA-256, leaves hashed behind a zero byte and nodes behind a one, so no node passes
as a leaf. A level with an odd number of nodes passes its last one up unchanged. The path of a leaf holds the siblings
from the leaf up to the root.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

__all__ = ["DIGEST_SIZE", "KnownTree", "leaf_of", "levels_of", "path_of", "root_of"]

DIGEST_SIZE = 32
_NODE = b"\x01"
_LEVEL_BITS = 32


def leaf_of(data: bytes) -> bytes:
    """Return the leaf of a message."""
    return sha256(b"\x00" + data).digest()


def levels_of(leaves: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Return the levels of the tree over one leaf or more: the leaves first, the root last."""
    levels: list[Sequence[bytes]] = [leaves]
    while len(level := levels[-1]) > 1:
        pairs = [sha256(_NODE + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        levels.append([*pairs, *level[len(pairs) * 2 :]])
    return levels


def path_of(levels: Sequence[Sequence[bytes]], index: int) -> bytes:
    """Return the path of the leaf with this index."""
    siblings = []
    for level in levels[:-1]:
        if index ^ 1 < len(level):
            siblings.append(level[index ^ 1])
        index >>= 1
    return b"".join(siblings)


class KnownTree:
    """Nodes that are known to belong to a tree. Each checked leaf makes its siblings known.

    So the leaves of a tree together cost about one hash each, not one for each level.

    Args:
        size: Number of leaves.
        root: The root, which a signature vouches for.
    """

    __slots__ = ("_nodes", "_size")

    def __init__(self, size: int, root: bytes) -> None:
        self._size = size
        self._nodes = {(size - 1).bit_length() << _LEVEL_BITS: root}

    def contains(self, index: int, leaf: bytes, path: bytes) -> bool:
        """Return whether the tree has this leaf at this index."""
        found = _climb(index, self._size, leaf, path, self._nodes)
        if found is None:
            return False
        self._nodes.update(found)
        return True

    def knows(self, index: int, leaf: bytes) -> bool:
        """Return whether the tree is known to have this leaf at this index, without its path."""
        return self._nodes.get(index) == leaf


def root_of(index: int, size: int, leaf: bytes, path: bytes) -> bytes | None:
    """Return the root that follows from a leaf and its path, or None if the path has another length."""
    found = _climb(index, size, leaf, path, {})
    return None if found is None else found[(size - 1).bit_length() << _LEVEL_BITS]


def _climb(index: int, size: int, leaf: bytes, path: bytes, known: dict[int, bytes]) -> dict[int, bytes] | None:
    """Return the nodes on the way from a leaf up to the first known node, or to the root, with their siblings.

    None: the path is too short, or leads to another node than the known one.
    """
    if not 0 <= index < size:
        return None
    found: dict[int, bytes] = {}
    level, digest, width, offset = 0, leaf, size, 0
    while True:
        place = level << _LEVEL_BITS | index
        at_place = known.get(place)
        if at_place is not None:
            return found if at_place == digest else None
        found[place] = digest
        if width == 1:
            return found if offset == len(path) else None
        if index ^ 1 < width:
            sibling = path[offset : offset + DIGEST_SIZE]
            offset += DIGEST_SIZE
            if len(sibling) != DIGEST_SIZE:
                return None
            found[place ^ 1] = sibling
            digest = sha256(_NODE + sibling + digest if index & 1 else _NODE + digest + sibling).digest()
        level, index, width = level + 1, index >> 1, width + 1 >> 1
