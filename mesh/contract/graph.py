"""Dependency graph: topological layers and cycles. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["CycleError", "cycle", "order"]


class CycleError(ValueError):
    """The dependencies form a cycle. ``members`` lists its nodes, with the first one again at the end."""

    def __init__(self, members: Sequence[str]) -> None:
        self.members = tuple(members)
        super().__init__(" → ".join(self.members))


def order(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return the nodes in topological layers. A node depends only on nodes of earlier layers.

    Args:
        edges: Node → its dependencies. Nodes that occur only as a dependency are included.

    Raises:
        CycleError: The dependencies form a cycle.
    """
    found = cycle(edges)
    if found:
        raise CycleError(found)
    nodes = list(dict.fromkeys([*edges, *(needed for needs in edges.values() for needed in needs)]))
    depth: dict[str, int] = {}

    def depth_of(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((depth_of(needed) for needed in edges.get(node, ())), default=-1)
        return depth[node]

    layers: list[list[str]] = [[] for _ in range(1 + max((depth_of(node) for node in nodes), default=-1))]
    for node in sorted(nodes):
        layers[depth[node]].append(node)
    return layers


def cycle(edges: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Return the nodes of one cycle, with the first one again at the end, or None. The result is deterministic."""
    done: set[str] = set()
    path: list[str] = []

    def walk(node: str) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        path.append(node)
        for needed in sorted(edges.get(node, ())):
            found = walk(needed)
            if found:
                return found
        path.pop()
        done.add(node)
        return None

    for node in sorted(edges):
        found = walk(node)
        if found:
            return found
    return None
