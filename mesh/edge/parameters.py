"""Fields of a request that text in a URL sets: path variables and query parameters of one route. Pure.

The edge reads a query by what is here, and the OpenAPI document lists what is here, so neither knows a name that the
other does not. Every field comes from one place: the path, else the body, else the query.

A parameter's name is the names of the fields on the way to it, joined by dots: JSON names or those of the .proto file.
A JSON name can have dots itself. Of two possible readings the one with the longest name is taken, and a JSON name
before one of the .proto file.

Sources: google/api/http.proto ("Rules for HTTP mapping"), AIP-127.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mesh.contract.model import Method, Route
from mesh.errors import InvalidArgument
from mesh.message_methods import which_oneof
from mesh.protojson.names import json_names
from mesh.protojson.url_text import text_setter

__all__ = ["SYSTEM", "WHOLE", "Parameter", "Parameters", "invalid"]

Setter = Callable[[Any, str], None]

SYSTEM = frozenset(
    (
        "$alt", "$apiVersion", "$api-version", "$callback", "$ct", "$fields", "$httpMethod", "$key", "$outputDefaults",
        "$prettyPrint", "$quotaUser", "$req", "$trace", "$unique", "$userProject", "$.xgafv",
    )
)  # fmt: skip
"""The system parameters; those that the edge has no use for are passed over."""

WHOLE = frozenset(
    (
        "google.api.HttpBody",
        "google.protobuf.Any",
        "google.protobuf.ListValue",
        "google.protobuf.Struct",
        "google.protobuf.Value",
    )
)
"""Messages whose JSON is not an object of their fields: no field of theirs is a query parameter."""

_KNOWN = 256
"""Query parameter names that one route remembers; a recursive message has no end of them."""
_DEEP = 100
"""Names in one field path; protobuf reads no message that is nested deeper."""
_DEEPEST_OFFERED = 6
"""Levels of nested fields that are offered as query parameters; deeper ones can be sent all the same."""


class Parameter:
    """One leaf field that text can set.

    Attributes:
        name: Its path by proto names.
        parents: Names of the messages on the way to it.
        choices: The oneofs that it and the messages on the way are members of: the names on the way to the message that
            has the oneof, the oneof, the member.
    """

    __slots__ = ("choices", "field", "name", "parents", "setter")

    def __init__(self, fields: Sequence[FieldDescriptor]) -> None:
        names = tuple(field.name for field in fields)
        setter = text_setter(fields[-1])
        assert setter is not None  # noqa: S101 - who makes one has seen to it
        self.name = ".".join(names)
        self.parents = names[:-1]
        self.field = fields[-1]
        self.setter: Setter = setter
        self.choices = [
            (names[:depth], field.containing_oneof.name, field.name)
            for depth, field in enumerate(fields)
            if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        ]

    def set(self, message: Any, text: str) -> None:
        """Set the field, or add an element to it.

        Raises:
            BadValue: The text does not fit.
        """
        for parent in self.parents:
            message = getattr(message, parent)
        self.setter(message, text)

    def rival(self, message: Any) -> tuple[str, str] | None:
        """Return a oneof of which another member than this field is set, and that member; None if there is none."""
        for parents, oneof, member in self.choices:
            at = message
            for parent in parents:
                at = getattr(at, parent)
            other = which_oneof(at, oneof)
            if other is not None and other != member:
                return oneof, other
        return None


class Parameters:
    """The parameters of one route.

    Args:
        method: The method.
        route: One of its routes.

    Attributes:
        variables: Those of the path template, in their order.
    """

    def __init__(self, method: Method, route: Route) -> None:
        self._descriptor: Any = method.input.DESCRIPTOR
        self._body = route.body
        self.variables = [Parameter(_by_proto_names(self._descriptor, one.field)) for one in route.template.variables]
        self._bound = {parameter.name for parameter in self.variables}
        self._chosen = {
            (parents, oneof): member for variable in self.variables for parents, oneof, member in variable.choices
        }
        self._known: dict[str, Parameter] = {}
        self._names = _Names()

    def find(self, name: str) -> Parameter:
        """Return the parameter that a query calls so.

        Raises:
            InvalidArgument: There is none, or its field comes from another place.
        """
        known = self._known.get(name)
        if known is not None:
            return known
        where = f"query parameter {name!r}"
        fields = self._names.resolve(self._descriptor, name)
        if name in SYSTEM or (fields is None and name.startswith("$")):
            raise invalid(name, f"is {'' if name in SYSTEM else 'not '}a system parameter", where)
        if self._body == "*":
            raise invalid(name, "is not accepted: the whole request stands in the body", where)
        if fields is None:
            raise invalid(name, "is not a field of the request that a query can set", where)
        parameter = Parameter(fields)
        if any(_overlap(parameter.name, bound) for bound in self._bound):
            raise invalid(name, "is part of the path already", where)
        if self._body and fields[0].name == self._body:
            raise invalid(name, "belongs in the body", where)
        for parents, oneof, member in parameter.choices:
            other = self._chosen.get((parents, oneof), member)
            if other != member:
                raise invalid(name, f"only one of {oneof!r} can be set, and {other!r} is part of the path", where)
        if len(self._known) < _KNOWN:
            self._known[name] = parameter
        return parameter

    def offered(self) -> Iterator[tuple[str, tuple[FieldDescriptor, ...]]]:
        """Yield every query parameter that always makes sense: its name, by JSON names if it can be, and its fields.

        A member of a oneof of which the body is another member can be sent only without a body, so it is not offered. A
        recursive type is not entered again.
        """
        if self._body == "*":
            return
        for fields in _leaves(self._descriptor):
            if self._rivals_body(fields[0]):
                continue
            names = (".".join(map(_json_name, fields)), ".".join(field.name for field in fields))
            name = next((name for name in names if self._means(name, fields)), None)
            if name is not None:
                yield name, fields

    def _means(self, name: str, fields: Sequence[FieldDescriptor]) -> bool:
        try:
            return self.find(name).name == ".".join(field.name for field in fields)
        except InvalidArgument:
            return False

    def _rivals_body(self, field: FieldDescriptor) -> bool:
        oneof = field.containing_oneof
        return oneof is not None and any(other.name == self._body for other in oneof.fields)


class _Names:
    """Finds fields by what a query calls them; keeps what it has found out about message types."""

    def __init__(self) -> None:
        self._types: dict[Descriptor, tuple[dict[str, FieldDescriptor], int]] = {}

    def resolve(self, descriptor: Descriptor, name: str) -> tuple[FieldDescriptor, ...] | None:
        """Return the fields on the way to a leaf that text can set; None if there is no such way."""
        parts = name.split(".")
        return self._walk(descriptor, parts, 0, set()) if len(parts) <= _DEEP else None

    def _walk(
        self, descriptor: Descriptor, parts: list[str], start: int, failed: set[tuple[Descriptor, int]]
    ) -> tuple[FieldDescriptor, ...] | None:
        if (descriptor, start) in failed:
            return None
        fields, widest = self._type(descriptor)
        for end in range(min(len(parts), start + widest), start, -1):
            field = fields.get(".".join(parts[start:end]))
            if field is None:
                continue
            if end == len(parts):
                if text_setter(field) is not None:
                    return (field,)
            elif field.message_type is not None and not field.is_repeated:
                rest = self._walk(field.message_type, parts, end, failed)
                if rest is not None:
                    return (field, *rest)
        failed.add((descriptor, start))
        return None

    def _type(self, descriptor: Descriptor) -> tuple[dict[str, FieldDescriptor], int]:
        """Return the fields of a message by their names, and how many parts the longest name has."""
        found = self._types.get(descriptor)
        if found is None:
            names = json_names(descriptor)
            fields = {names[field.name]: field for field in descriptor.fields}
            for field in descriptor.fields:
                fields.setdefault(field.name, field)
            widest = max((name.count(".") + 1 for name in fields), default=1)
            found = self._types[descriptor] = (fields, widest)
        return found


def invalid(field: str, text: str, where: str) -> InvalidArgument:
    """Return the refusal of a value: which field, what is wrong, where it stands."""
    return InvalidArgument(f"{where}: {text}", violations={field: text})


def _by_proto_names(descriptor: Any, path: Sequence[str]) -> list[FieldDescriptor]:
    fields = []
    for name in path:  # the contract was checked: a path names fields that text can set
        fields.append(descriptor.fields_by_name[name])
        descriptor = fields[-1].message_type
    return fields


def _json_name(field: FieldDescriptor) -> str:
    holder: Any = field.containing_type
    return json_names(holder)[field.name]


def _overlap(one: str, other: str) -> bool:
    """Whether two field paths are the same, or one lies in the message that the other names."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _leaves(
    descriptor: Any, above: tuple[FieldDescriptor, ...] = (), types: tuple[str, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the way to every field that text can set."""
    types = (*types, descriptor.full_name)
    for field in descriptor.fields:
        way = (*above, field)
        if text_setter(field) is not None:
            yield way
        elif (
            not field.is_repeated
            and field.message_type is not None
            and field.message_type.full_name not in types
            and field.message_type.full_name not in WHOLE
            and len(way) < _DEEPEST_OFFERED
        ):
            yield from _leaves(field.message_type, way, types)
