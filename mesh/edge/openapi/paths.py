"""OpenAPI paths and path parameters, made from path templates. Pure.

A parameter in OpenAPI holds one segment. A variable with a sub-pattern (``{name=shelves/*/books/*}``) becomes its
literals with a parameter for each ``*``. A ``**`` becomes one parameter with slashes in it, marked ``x-multi-segment``,
because most tools would escape them. Two templates that differ only in the names of their variables are one path in
OpenAPI, so both have the names of the first.

Sources: OpenAPI 3.1 ("Paths Object"), google/api/http.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mesh.contract.path_template import Template, Variable

__all__ = ["MULTI_SEGMENT", "PathParameter", "PathTemplate"]

MULTI_SEGMENT = "x-multi-segment"
"""Key of a parameter object whose parameter may hold several segments."""

_ONE_SEGMENT, _SEGMENTS = "*", "**"
_UNESCAPED = "-._~!$&'()*+,;=:@"
"""Punctuation that a path segment may hold unescaped (RFC 3986, section 3.3)."""


@dataclass(slots=True)
class PathParameter:
    """One parameter of a path.

    Attributes:
        name: Name in the document.
        variable: Variable of the template that the parameter belongs to; None for a wildcard outside of variables.
        whole_value: Whether the parameter holds the whole value of the variable.
        multi_segment: Whether the parameter may hold several segments.
    """

    name: str
    variable: Variable | None
    whole_value: bool
    multi_segment: bool

    def to_object(
        self, schema: Callable[[tuple[str, ...]], dict[str, Any]], comment: str, pattern: str
    ) -> dict[str, Any]:
        """Return the parameter object.

        Args:
            schema: Field path → schema of the field's text.
            comment: Comment of the field.
            pattern: Value of the variable, written with the names of its parameters.
        """
        notes = [comment] if comment else []
        value_schema: dict[str, Any] = {"type": "string"}
        if self.variable is not None:
            path = ".".join(self.variable.field)
            if self.whole_value:
                value_schema = schema(self.variable.field)
                if self.name != path:
                    notes.append(f"It sets `{path}`.")
            else:
                notes.append(f"`{path}` is `{pattern}`.")
        if self.multi_segment:
            notes.append("It may hold several segments; its slashes are not escaped in the path. It may be empty.")
        elif value_schema.get("type") == "string":
            value_schema = {**value_schema, "minLength": 1}
        made: dict[str, Any] = {"name": self.name, "in": "path", "required": True}
        if notes:
            made["description"] = "\n\n".join(notes)
        made["schema"] = value_schema
        if self.multi_segment:
            made[MULTI_SEGMENT] = True
        return made


@dataclass(slots=True)
class PathTemplate:
    """Path template in OpenAPI's form.

    Attributes:
        parts: One part for each segment: a literal as escaped text, or a parameter.
        verb: Custom verb with its colon, or ``""``.
    """

    parts: list[str | PathParameter]
    verb: str

    @staticmethod
    def of(template: Template) -> PathTemplate:
        """Return the OpenAPI form of a template."""
        variable_at = {
            index: variable for variable in template.variables for index in range(variable.start, variable.stop)
        }
        taken: set[str] = set()
        parts: list[str | PathParameter] = []
        for index, segment in enumerate(template.segments):
            if segment not in (_ONE_SEGMENT, _SEGMENTS):
                parts.append(quote(segment[1:], safe=_UNESCAPED))
                continue
            variable = variable_at.get(index)
            whole_value = variable is not None and variable.stop - variable.start == 1
            first = variable.start if variable is not None else 0
            previous = template.segments[index - 1] if index > first else ""
            literal = previous[1:] if previous.startswith("=") else ""
            name = _unique(_name(segment, literal, variable), taken)
            parts.append(PathParameter(name, variable, whole_value, segment == _SEGMENTS))
        return PathTemplate(parts, f":{quote(template.verb, safe=_UNESCAPED)}" if template.verb is not None else "")

    @property
    def shape(self) -> tuple[Any, ...]:
        """The template without the names of its parameters; paths of one shape are the same path in OpenAPI."""
        return tuple(None if isinstance(part, PathParameter) else part for part in self.parts), self.verb

    @property
    def text(self) -> str:
        """Key of the path item."""
        return "".join(f"/{_text(part)}" for part in self.parts) + self.verb

    @property
    def parameters(self) -> list[PathParameter]:
        """Parameters in the order of the path."""
        return [part for part in self.parts if isinstance(part, PathParameter)]

    def rename(self, other: PathTemplate) -> None:
        """Take the parameter names of another template of the same shape."""
        for parameter, named in zip(self.parameters, other.parameters, strict=True):
            parameter.name = named.name

    def pattern(self, variable: Variable) -> str:
        """Return the variable's value with parameters in it: ``shelves/{shelves_id}/books/{books_id}``."""
        return "/".join(_text(part) for part in self.parts[variable.start : variable.stop])


def _text(part: str | PathParameter) -> str:
    return f"{{{part.name}}}" if isinstance(part, PathParameter) else part


def _name(segment: str, literal: str, variable: Variable | None) -> str:
    """Return the name of a parameter, after the literal segment before it or else after its variable."""
    kind = "path" if segment == _SEGMENTS else "id"
    if literal:
        return "".join(character if character.isalnum() else "_" for character in literal) + f"_{kind}"
    return "_".join(variable.field) if variable is not None else kind  # no dots: some tools give them a meaning


def _unique(name: str, taken: set[str]) -> str:
    candidates: Iterator[str] = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    unique = name if name not in taken else next(candidate for candidate in candidates if candidate not in taken)
    taken.add(unique)
    return unique
