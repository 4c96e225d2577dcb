"""Router: finds the route of an HTTP path, in time that does not grow with the number of routes. Pure.

A static path is one dictionary look-up. Every other template is a path through a trie whose nodes are path segments. At
each node a literal is tried before ``*`` and ``*`` before ``**``, with backtracking if the rest does not match. So the
most specific template wins, whatever the order of declaration. A template's custom verb (``:cancel``) is more specific
than a segment that contains it.

Decoding (google/api/http.proto, "Path template syntax"): literals are compared decoded. A variable of one segment is
decoded completely, one that can span several segments is decoded except for ``%2F``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar
from urllib.parse import unquote

from mesh.contract.path_template import ANY, REST, Template, Variable

__all__ = ["BadPath", "Router"]

TargetT = TypeVar("TargetT")

_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH = re.compile(r"(%2[Ff])")
ANY_VERB = "*"


class BadPath(ValueError):
    """A path with a malformed percent escape, or with one that is not UTF-8."""


class _Node(Generic[TargetT]):
    """Node of the trie: one segment. ``ends`` maps custom verb, then HTTP method, to target and template."""

    __slots__ = ("any", "ends", "literals", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[TargetT]] = {}
        self.any: _Node[TargetT] | None = None
        self.rest: _Node[TargetT] | None = None
        self.ends: dict[str | None, dict[str, tuple[TargetT, Template]]] = {}


class Router(Generic[TargetT]):
    """Targets of path templates and HTTP methods.

    Args:
        routes: (HTTP method or ``"*"``, template, target). Equal shapes must differ in the method.
        full_first: Whether a template of a target that ends in ``**`` is only taken when no other one matches: the rule
            of API Gateway's HTTP APIs ("Create routes for HTTP APIs": full match, then greedy, then ``$default``).
    """

    def __init__(
        self,
        routes: Iterable[tuple[str, Template, TargetT]],
        full_first: Callable[[TargetT], bool] = lambda _: False,
    ) -> None:
        self._full_first = full_first
        self._root: _Node[TargetT] = _Node()
        self._static: dict[str, dict[str, tuple[TargetT, Template]]] = {}
        self._verbs: set[str] = set()
        for verb, template, target in routes:
            self._add(verb, template, target)

    def _add(self, verb: str, template: Template, target: TargetT) -> None:
        node = self._root
        for segment in template.segments:
            if segment == ANY:
                node.any = node.any or _Node()
                node = node.any
            elif segment == REST:
                node.rest = node.rest or _Node()
                node = node.rest
            else:
                node = node.literals.setdefault(segment[1:], _Node())
        ends = node.ends.setdefault(template.verb, {})
        ends[verb] = (target, template)
        if template.verb is not None:
            self._verbs.add(template.verb)
        if not template.variables and ANY not in template.segments and REST not in template.segments:
            path = "/" + "/".join(segment[1:] for segment in template.segments)
            path += f":{template.verb}" if template.verb is not None else ""
            # Paths with escapes, and text that reads as a verb or as more segments, are left to the trie.
            if re.fullmatch(r"[A-Za-z0-9\-._~/]+(?::[A-Za-z0-9\-._~]+)?", path) and (template.verb or ":" not in path):
                self._static[path] = ends

    def find(self, path: str, verb: str) -> tuple[TargetT, tuple[str, ...]] | frozenset[str]:
        """Return the target of a request.

        Args:
            path: The raw path, percent escapes and all, without the query.
            verb: The HTTP method in upper case.

        Returns:
            The target and the decoded texts of its template's variables in their order. If no template of the path has
            this HTTP method: the methods that the path has, none if the path is unknown.

        Raises:
            BadPath: A percent escape is malformed.
        """
        ends = self._static.get(path)
        if ends is not None:
            found = ends.get(verb) or ends.get(ANY_VERB)
            if found is not None:
                return found[0], ()
        if "%" in path and _ESCAPE.search(path):
            raise BadPath("the path has a '%' that is not followed by two hexadecimal digits; write '%25' for the sign")
        allowed: set[str] = set()
        greedy: tuple[TargetT, Template, list[str]] | None = None
        for at, segments in self._candidates(path):
            found = at.get(verb) or at.get(ANY_VERB)
            if found is None:
                allowed.update(at)
                continue
            target, template = found
            if template.segments[-1] != REST or not (greedy or self._full_first(target)):
                return target, _values(segments, template)
            greedy = greedy or (target, template, segments)
        if greedy is not None:
            target, template, segments = greedy
            return target, _values(segments, template)
        return frozenset(allowed)

    def _candidates(self, path: str) -> Iterator[tuple[dict[str, tuple[TargetT, Template]], list[str]]]:
        """Yield the ends of every template that matches, the most specific first, with the path's raw segments."""
        if not path.startswith("/"):
            return
        raw = path[1:].split("/")
        plain = [_decode(segment) for segment in raw] if "%" in path else raw
        head, colon, last = raw[-1].rpartition(":")
        custom = _decode(last) if colon else None
        if custom is not None and custom in self._verbs:
            yield from self._walk([*raw[:-1], head], [*plain[:-1], _decode(head)], custom)
        yield from self._walk(raw, plain, None)

    def _walk(
        self, raw: list[str], plain: list[str], custom: str | None
    ) -> Iterator[tuple[dict[str, tuple[TargetT, Template]], list[str]]]:
        count = len(plain)
        # An explicit stack with the next candidate on top. A node is reached by one sequence of segments only, so the
        # work is limited by the number of matching nodes.
        stack: list[tuple[_Node[TargetT], int]] = [(self._root, 0)]
        while stack:
            node, index = stack.pop()
            if index == count:
                ends = node.ends.get(custom)
                if ends is not None:
                    yield ends, raw
                if node.rest is not None:  # "**" also matches no segment
                    ends = node.rest.ends.get(custom)
                    if ends is not None:
                        yield ends, raw
                continue
            if node.rest is not None:
                stack.append((node.rest, count))
            if node.any is not None and plain[index]:
                stack.append((node.any, index + 1))
            below = node.literals.get(plain[index])
            if below is not None:
                stack.append((below, index + 1))


def _decode(text: str) -> str:
    if "%" not in text:
        return text
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise BadPath("the path has percent escapes that are not UTF-8") from None


def _values(raw: list[str], template: Template) -> tuple[str, ...]:
    return tuple([_value(raw, template, variable) for variable in template.variables])


def _value(raw: list[str], template: Template, variable: Variable) -> str:
    """Return the text of a variable: that of all its segments, in the order of the path."""
    if not variable.multi:
        return _decode(raw[variable.start])
    open_end = template.segments[variable.stop - 1] == REST
    text = "/".join(raw[variable.start :] if open_end else raw[variable.start : variable.stop])
    if "%" not in text:
        return text
    return "".join([part if _SLASH.fullmatch(part) else _decode(part) for part in _SLASH.split(text)])
