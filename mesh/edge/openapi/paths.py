"""Path templates → OpenAPI paths. Pure.

OpenAPI knows parameters of one segment only. A variable with a sub-pattern (``{name=shelves/*/books/*}``) becomes its
literals with a parameter for each ``*``; a ``**`` becomes one parameter that says that it holds slashes, marked with
``x-multi-segment``, because most tools would escape them. Two templates that differ in the names of their variables are
one OpenAPI path, so the first one's names hold for both.

Sources: OpenAPI 3.1 ("Paths Object"), google/api/http.proto.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mesh.contract.path_template import Template, Variable

__all__ = ["MULTI", "PathParameter", "PathTemplate"]

MULTI = "x-multi-segment"

_ONE, _REST = "*", "**"
_SAFE = "-._~!$&'()*+,;=:@"
"""What a path segment may hold unescaped (RFC 3986, section 3.3)."""


@dataclass(slots=True)
class PathParameter:
    """One parameter of a path.

    Attributes:
        name: Its name in the document.
        variable: The template's variable that it is, or is part of; None for a wildcard of no variable.
        whole: It holds the variable's whole value.
        multi: It may hold several segments.
    """

    name: str
    variable: Variable | None
    whole: bool
    multi: bool

    def of(self, schema: Callable[[tuple[str, ...]], dict[str, Any]], comment: str, pattern: str) -> dict[str, Any]:
        """Return the parameter object.

        Args:
            schema: Field path → the schema of its text.
            comment: What is said of the field.
            pattern: How the variable's value is made of the parameters, if there are several.
        """
        notes = [comment] if comment else []
        shape: dict[str, Any] = {"type": "string"}
        if self.variable is not None:
            path = ".".join(self.variable.field)
            if self.whole:
                shape = schema(self.variable.field)
                if self.name != path:
                    notes.append(f"It sets `{path}`.")
            else:
                notes.append(f"`{path}` is `{pattern}`.")
        if self.multi:
            notes.append("It may hold several segments: its slashes are not escaped in the path. It may be empty.")
        elif shape.get("type") == "string":
            shape = {**shape, "minLength": 1}
        made: dict[str, Any] = {"name": self.name, "in": "path", "required": True}
        if notes:
            made["description"] = "\n\n".join(notes)
        made["schema"] = shape
        if self.multi:
            made[MULTI] = True
        return made


@dataclass(slots=True)
class PathTemplate:
    """A template as OpenAPI writes it.

    Attributes:
        parts: Literals as text, escaped, and parameters, one a segment.
        verb: The custom verb with its colon, or ``""``.
    """

    parts: list[str | PathParameter]
    verb: str

    @staticmethod
    def of(template: Template) -> PathTemplate:
        """Return the template's OpenAPI form."""
        owner = {at: one for one in template.variables for at in range(one.start, one.stop)}
        taken: set[str] = set()
        parts: list[str | PathParameter] = []
        for at, segment in enumerate(template.segments):
            if segment not in (_ONE, _REST):
                parts.append(quote(segment[1:], safe=_SAFE))
                continue
            variable = owner.get(at)
            whole = variable is not None and variable.stop - variable.start == 1
            first = variable.start if variable is not None else 0
            before = template.segments[at - 1][1:] if at > first and template.segments[at - 1].startswith("=") else ""
            name = _name(segment, before, variable)
            parts.append(PathParameter(_unique(name, taken), variable, whole, segment == _REST))
        return PathTemplate(parts, f":{quote(template.verb, safe=_SAFE)}" if template.verb is not None else "")

    @property
    def shape(self) -> tuple[Any, ...]:
        """What it matches, as far as OpenAPI can tell."""
        return tuple(None if isinstance(part, PathParameter) else part for part in self.parts), self.verb

    @property
    def text(self) -> str:
        """The key of the path item."""
        return "".join(f"/{_text(part)}" for part in self.parts) + self.verb

    @property
    def parameters(self) -> list[PathParameter]:
        """The parameters in their order."""
        return [part for part in self.parts if isinstance(part, PathParameter)]

    def rename(self, other: PathTemplate) -> None:
        """Take the names of another template of the same shape."""
        for own, its in zip(self.parameters, other.parameters, strict=True):
            own.name = its.name

    def pattern(self, variable: Variable) -> str:
        """Return how the variable's value is made of its parameters: ``shelves/{shelves_id}/books/{books_id}``."""
        return "/".join(_text(part) for part in self.parts[variable.start : variable.stop])


def _text(part: str | PathParameter) -> str:
    return f"{{{part.name}}}" if isinstance(part, PathParameter) else part


def _name(segment: str, before: str, variable: Variable | None) -> str:
    kind = "path" if segment == _REST else "id"
    if before:
        return "".join(one if one.isalnum() else "_" for one in before) + f"_{kind}"
    return "_".join(variable.field) if variable is not None else kind  # no dots: some tools take them for more


def _unique(name: str, taken: set[str]) -> str:
    candidates: Iterator[str] = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    found = name if name not in taken else next(one for one in candidates if one not in taken)
    taken.add(found)
    return found
