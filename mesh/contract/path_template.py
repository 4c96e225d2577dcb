"""Parser of the path templates of ``google.api.http``. Pure.

Grammar (google/api/http.proto)::

    Template = "/" Segments [ Verb ] ;
    Segments = Segment { "/" Segment } ;
    Segment  = "*" | "**" | LITERAL | Variable ;
    Variable = "{" FieldPath [ "=" Segments ] "}" ;
    FieldPath = IDENT { "." IDENT } ;
    Verb     = ":" LITERAL ;
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

__all__ = ["Template", "TemplateError", "Variable", "parse", "parse_slashed"]

ANY = "*"
"""Wildcard for one segment."""
REST = "**"
"""Wildcard for zero or more segments, at the end only."""

_IDENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()+,;=@]|%[0-9A-Fa-f]{2})+\Z")


class TemplateError(ValueError):
    """The text is no path template. The message names the error and its position."""


@dataclass(frozen=True, slots=True)
class Variable:
    """Path variable: a part of the path that sets a field.

    Attributes:
        field: Path of the field in the request message, in proto names.
        start: Index of the first segment.
        stop: Index after the last segment.
        multi: Whether it may match several segments. ``%2F`` in it stays encoded then (http.proto, "Path template
            syntax").
    """

    field: tuple[str, ...]
    start: int
    stop: int
    multi: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template.

    Attributes:
        text: As written.
        segments: ``"*"``, ``"**"``, or ``"="`` and a decoded literal.
        verb: The decoded custom verb after the last ``:``, or None.
        variables: Variables in the order of the path.
    """

    text: str
    segments: tuple[str, ...]
    verb: str | None
    variables: tuple[Variable, ...]

    @property
    def shape(self) -> tuple[tuple[str, ...], str | None]:
        """Key without variable names. Templates with equal shapes match the same paths."""
        return self.segments, self.verb


def parse(text: str) -> Template:
    """Parse a path template.

    Raises:
        TemplateError: The text is no path template.
    """
    if not text.startswith("/"):
        raise TemplateError(f"{text!r} must begin with '/'")
    return _Parser(text).template()


def parse_slashed(text: str) -> Template:
    """Parse a path template that may end with a slash, as in API Gateway. The grammar above does not allow it.

    Raises:
        TemplateError: As ``parse``.
    """
    if not text.endswith("/"):
        return parse(text)
    inner = parse(text[:-1]) if text != "/" else Template("", (), None, ())
    return Template(text, (*inner.segments, "="), None, inner.variables)


class _Parser:
    """Recursive-descent parser of one template."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1
        self.segments: list[str] = []
        self.variables: list[Variable] = []

    def template(self) -> Template:
        self._segments(inside=False)
        verb = None
        if self._peek() == ":":
            self.at += 1
            raw = self._take("/{}:*")
            verb = self._literal(raw, "the verb after ':'")
        if self.at != len(self.text):
            raise self._error(f"unexpected {self._peek()!r}")
        if REST in self.segments[:-1]:
            raise self._error("'**' may only be the last segment")
        names = [variable.field for variable in self.variables]
        for name in names:
            if names.count(name) > 1:
                raise self._error(f"the variable {'.'.join(name)!r} occurs twice")
        return Template(self.text, tuple(self.segments), verb, tuple(self.variables))

    def _segments(self, *, inside: bool) -> None:
        while True:
            self._segment(inside=inside)
            if self._peek() != "/":
                return
            self.at += 1

    def _segment(self, *, inside: bool) -> None:
        if self._peek() == "{":
            if inside:
                raise self._error("a variable cannot hold another variable")
            self._variable()
            return
        raw = self._take("/{}:" if not inside else "/{}")
        if raw in (ANY, REST):
            self.segments.append(raw)
        elif raw == "":
            raise self._error("empty segment")
        else:
            self.segments.append("=" + self._literal(raw, "the segment"))

    def _variable(self) -> None:
        self.at += 1
        name = self._take("=}/{")
        field = tuple(name.split("."))
        if not all(_IDENT.match(part) for part in field):
            raise self._error(f"{name!r} is not a field path (names joined by '.')")
        start = len(self.segments)
        if self._peek() == "=":
            self.at += 1
            self._segments(inside=True)
        else:
            self.segments.append(ANY)
        if self._peek() != "}":
            raise self._error(f"the variable {name!r} is not closed with '}}'")
        self.at += 1
        if self._peek() not in ("", "/", ":"):
            raise self._error(f"after the variable {name!r}, '/' or ':' or the end must follow")
        own = self.segments[start:]
        self.variables.append(Variable(field, start, len(self.segments), own != [ANY]))

    def _literal(self, raw: str, what: str) -> str:
        if not _LITERAL.match(raw):
            raise self._error(f"{what} {raw!r} holds a character that a URL path must escape")
        try:
            return unquote(raw, errors="strict")
        except UnicodeDecodeError:
            raise self._error(f"{what} {raw!r} has percent escapes that are not UTF-8") from None

    def _take(self, stops: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in stops:
            self.at += 1
        return self.text[start : self.at]

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _error(self, what: str) -> TemplateError:
        return TemplateError(f"{self.text!r}: {what}, at character {self.at + 1}")
