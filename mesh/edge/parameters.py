"""URL parameters of a route: fields of the request that path variables and query parameters set. Pure.

The edge reads a query by these rules, and the OpenAPI document lists the parameters by them, so the two agree on every
name. Every field is set from one source: the path, else the body, else the query.

The name of a parameter is the names of the fields on the way to it, joined by dots: JSON names or those of the .proto
file. A JSON name can contain dots. Of two possible readings the one with the longest name is used, and a JSON name
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
"""Google's system parameters. Those that the edge does not support are ignored."""

WHOLE = frozenset(
    (
        "google.api.HttpBody",
        "google.protobuf.Any",
        "google.protobuf.ListValue",
        "google.protobuf.Struct",
        "google.protobuf.Value",
    )
)
"""Messages whose JSON is no object of their fields. Their fields are no query parameters."""

_MAX_CACHED_NAMES = 256
"""Query parameter names that one route caches. A recursive message has unlimited names."""
_MAX_DEPTH = 100
"""Names in one field path. Protobuf parses no message that is nested deeper."""
_MAX_OFFERED_DEPTH = 6
"""Levels of nested fields that the document lists as query parameters. Deeper ones can be sent too."""


class Parameter:
    """Leaf field that text can set.

    Attributes:
        name: Its path by proto names.
        parents: Names of the messages on the way to it.
        choices: The oneofs of which it or a message on the way is a member, each as: names on the way to the message
            with the oneof, name of the oneof, name of the member.
    """

    __slots__ = ("choices", "field", "name", "parents", "setter")

    def __init__(self, fields: Sequence[FieldDescriptor]) -> None:
        names = tuple(field.name for field in fields)
        setter = text_setter(fields[-1])
        assert setter is not None  # noqa: S101 - the caller has checked it
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
            BadValue: The text is no value of the field.
        """
        for parent in self.parents:
            message = getattr(message, parent)
        self.setter(message, text)

    def rival(self, message: Any) -> tuple[str, str] | None:
        """Return a oneof of which another member is set, and that member; None if there is none."""
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
        variables: Parameters of the path template, in their order.
    """

    def __init__(self, method: Method, route: Route) -> None:
        self._descriptor: Any = method.input.DESCRIPTOR
        self._body = route.body
        self.variables = [Parameter(_by_proto_names(self._descriptor, one.field)) for one in route.template.variables]
        self._bound = {parameter.name for parameter in self.variables}
        self._chosen = {
            (parents, oneof): member for variable in self.variables for parents, oneof, member in variable.choices
        }
        self._cache: dict[str, Parameter] = {}
        self._names = _Names()

    def find(self, name: str) -> Parameter:
        """Return the query parameter of a name.

        Raises:
            InvalidArgument: There is none, or path or body set its field.
        """
        cached = self._cache.get(name)
        if cached is not None:
            return cached
        where = f"query parameter {name!r}"
        fields = self._names.resolve(self._descriptor, name)
        if name in SYSTEM or (fields is None and name.startswith("$")):
            raise invalid(name, f"is {'' if name in SYSTEM else 'not '}a system parameter", where)
        if self._body == "*":
            raise invalid(name, "is not accepted: the body is the whole request", where)
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
        if len(self._cache) < _MAX_CACHED_NAMES:
            self._cache[name] = parameter
        return parameter

    def offered(self) -> Iterator[tuple[str, tuple[FieldDescriptor, ...]]]:
        """Yield the query parameters that the document lists: the name, by JSON names if possible, and the fields.

        A member of a oneof of which the body is another member is left out: it can be sent only without a body. A
        recursive type is not entered a second time.
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
    """Index of fields by their names in a query, cached for each message type."""

    def __init__(self) -> None:
        self._types: dict[Descriptor, tuple[dict[str, FieldDescriptor], int]] = {}

    def resolve(self, descriptor: Descriptor, name: str) -> tuple[FieldDescriptor, ...] | None:
        """Return the fields on the way to a leaf that text can set; None if there is none."""
        parts = name.split(".")
        return self._walk(descriptor, parts, 0, set()) if len(parts) <= _MAX_DEPTH else None

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
        """Return the fields of a message by their names, and the number of parts of the longest name."""
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
    """Return the error of a value, with the field, the fault and its place in the request."""
    return InvalidArgument(f"{where}: {text}", violations={field: text})


def _by_proto_names(descriptor: Any, path: Sequence[str]) -> list[FieldDescriptor]:
    fields = []
    for name in path:  # the loader has checked that path variables name fields that text can set
        fields.append(descriptor.fields_by_name[name])
        descriptor = fields[-1].message_type
    return fields


def _json_name(field: FieldDescriptor) -> str:
    holder: Any = field.containing_type
    return json_names(holder)[field.name]


def _overlap(one: str, other: str) -> bool:
    """Whether two field paths are equal, or one is inside the message of the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _leaves(
    descriptor: Any, above: tuple[FieldDescriptor, ...] = (), types: tuple[str, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Yield the path of fields to every field that text can set."""
    types = (*types, descriptor.full_name)
    for field in descriptor.fields:
        path = (*above, field)
        if text_setter(field) is not None:
            yield path
        elif (
            not field.is_repeated
            and field.message_type is not None
            and field.message_type.full_name not in types
            and field.message_type.full_name not in WHOLE
            and len(path) < _MAX_OFFERED_DEPTH
        ):
            yield from _leaves(field.message_type, path, types)
