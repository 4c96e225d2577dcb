"""Codecs of message types: the parser, JSON → message, joined with the printer. Entry point of the package.

The proto3 JSON mapping, with its open choices made strict: unknown fields, a field given twice (under one name or under
both of its names) and two members of one oneof are errors. A codec sets the fields of a new message. It does not merge.

A codec is compiled at its first use. It belongs to the ``Codecs`` that made it, which holds the options.
Sources: https://protobuf.dev/programming-guides/json/ and protobuf's conformance suite.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import orjson
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from mesh.message_methods import extensions, set_in_parent, which_oneof
from mesh.protojson.any import any_of, wrapper
from mesh.protojson.fastpath import extend_strings, fast_fill, is_fast
from mesh.protojson.names import extension_named, json_names
from mesh.protojson.printer import field_dump, is_map, message_dump, type_name
from mesh.protojson.scalars import BadValue, JsonError, UnknownEnumName, decoder, describe, exact, key_decoder
from mesh.protojson.syntax import loads
from mesh.protojson.wellknown import WELL_KNOWN, WRAPPERS

__all__ = ["NO_SUCH_FIELD", "Codec", "Codecs"]

Fill = Callable[[Any, Any], None]
Dump = Callable[[Any], Any]

NO_SUCH_FIELD = "there is no such field"
"""Error text for a name that no field of the message has."""


class Codecs:
    """Codecs with one set of options. Safe to share.

    Args:
        ignore_unknown_fields: Ignore unknown field names and unknown enum names.
        always_print_fields_with_no_presence: Print scalars without presence, repeated fields and maps also with their
            default value.
        always_print: Return whether a field is printed also with its default value.
        enums_as_numbers: Print enums by number.
    """

    def __init__(
        self,
        *,
        ignore_unknown_fields: bool = False,
        always_print_fields_with_no_presence: bool = False,
        always_print: Callable[[FieldDescriptor], bool] | None = None,
        enums_as_numbers: bool = False,
    ) -> None:
        self.ignore_unknown = ignore_unknown_fields
        self.print_defaults = always_print_fields_with_no_presence
        self.always_print = always_print
        self.numbers = enums_as_numbers
        self._codecs: dict[Descriptor, Codec] = {}
        self._with_numbers: Codecs | None = None

    def with_numbers(self) -> Codecs:
        """Return the codecs that print enums by number. They are made once."""
        if self._with_numbers is None:
            self._with_numbers = Codecs(
                always_print_fields_with_no_presence=self.print_defaults,
                always_print=self.always_print,
                enums_as_numbers=True,
            )
        return self._with_numbers

    def of(self, message: type[Message]) -> Codec:
        """Return the codec of a message class. Compiles it at the first use."""
        return self.of_descriptor(message.DESCRIPTOR)

    def of_descriptor(self, descriptor: Any) -> Codec:
        """Return the codec of a message type."""
        codec = self._codecs.get(descriptor)
        if codec is None:
            codec = self._codecs[descriptor] = Codec(message_factory.GetMessageClass(descriptor))
            _compile(codec, descriptor, self)
        return codec

    def field(self, field: Any) -> tuple[Fill, Dump]:
        """Return the setter and the printer of one field. The setter raises ``BadValue``."""
        return _store(field, self), field_dump(field, self)


class Codec:
    """Parser and printer of one message type.

    Attributes:
        message: The message class.
        fill: Sets a new message from a JSON value; raises ``BadValue``. For code that nests codecs.
        dump: Returns the JSON value (dicts, lists, …) of a message; raises ``JsonEncodeError``.
        wrapped: Whether the JSON is under ``value`` in an ``Any``, because it is no object of the message's fields.
    """

    __slots__ = ("dump", "fill", "message", "wrapped")

    fill: Fill
    dump: Dump

    def __init__(self, message: type[Message]) -> None:
        self.message: Any = message
        self.wrapped = False

    def parse(self, data: bytes) -> Any:
        """Return the message of a JSON text.

        Raises:
            JsonSyntaxError: The text is not JSON.
            JsonError: The value does not fit the message.
        """
        return self.parse_value(loads(data))

    def parse_value(self, value: Any) -> Any:
        """Return the message of a parsed JSON value.

        Raises:
            JsonError: The value does not fit the message.
        """
        message = self.message()
        try:
            self.fill(message, value)
        except BadValue as error:
            raise JsonError.of(error) from None
        return message

    def print(self, message: Any) -> bytes:
        """Return the message as JSON text.

        Raises:
            JsonEncodeError: A value in the message has no JSON form.
        """
        return orjson.dumps(self.dump(message))


def _compile(codec: Codec, descriptor: Descriptor, codecs: Codecs) -> None:
    name = descriptor.full_name
    known = WELL_KNOWN.get(name)
    if known is not None:
        codec.fill, codec.dump = known
        codec.wrapped = True
    elif name in WRAPPERS:
        codec.fill, codec.dump = wrapper(descriptor.fields_by_name["value"])
        codec.wrapped = True
    elif name == "google.protobuf.Any":
        codec.fill, codec.dump = any_of(descriptor.file.pool, codecs)
        codec.wrapped = True
    else:
        small = is_fast(descriptor)
        codec.fill = _message_fill(descriptor, codecs)
        codec.dump = message_dump(descriptor, codecs, small=small)
        if small:
            fields, names = list(descriptor.fields), json_names(descriptor)
            stores = [_store(field, codecs) for field in fields]
            codec.fill = fast_fill(fields, [names[field.name] for field in fields], stores, codec.fill)


# -- JSON to messages --


def _message_fill(descriptor: Descriptor, codecs: Codecs) -> Fill:  # noqa: C901 - most of it is the hot loop
    fields: dict[str, Any] = {}
    names = json_names(descriptor)
    for field in descriptor.fields:
        several = field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        plain = field.message_type is None and not field.is_repeated and not several
        decode = decoder(field) if plain and not (codecs.ignore_unknown and field.enum_type) else None
        kind = exact(field) if decode is not None else None
        fields[names[field.name]] = (field.name, kind, decode, _store(field, codecs))
    aliases = {name: key for name, key in names.items() if name not in fields}
    get, other = fields.get, aliases.get
    ignore_unknown = codecs.ignore_unknown

    def by_alias(key: str, value: dict[str, Any]) -> Any:
        alias = other(key)
        if alias is None:
            extension = extension_named(descriptor, key)
            if extension is not None:
                fields[key] = ("", None, None, _store(extension, codecs))
                return fields[key]
            if ignore_unknown:
                return None
            raise _at(BadValue(NO_SUCH_FIELD), key)
        if alias in value:
            raise _at(BadValue(f"the field occurs twice, also as {alias}"), key)
        return fields[alias]

    def fill(message: Any, value: Any) -> None:
        if type(value) is not dict:
            raise BadValue(f"expected an object, got {describe(value)}")
        for key, one in value.items():
            field = get(key) or by_alias(key, value)
            if field is None:
                continue
            name, kind, decode, store = field
            try:
                if type(one) is kind:
                    try:
                        setattr(message, name, one)
                    except ValueError:
                        store(message, one)  # out of range: raises the error with the range
                elif decode is not None and one is not None:
                    setattr(message, name, decode(one))
                else:
                    store(message, one)
            except BadValue as error:
                error.path.append(key)
                raise

    return fill


def _at(error: BadValue, place: str) -> BadValue:
    error.path.append(place)
    return error


def _store(field: FieldDescriptor, codecs: Codecs) -> Fill:
    """Return the setter of a field for any JSON value, also null."""
    inner = _setter(field, codecs)
    keeps_null = not field.is_repeated and type_name(field) in ("google.protobuf.Value", "google.protobuf.NullValue")
    oneof = field.containing_oneof.name if field.containing_oneof is not None else None
    skip_unknown = codecs.ignore_unknown and field.enum_type is not None and not field.is_repeated

    def store(message: Any, value: Any) -> None:
        if value is None and not keeps_null:
            return
        if oneof is not None and which_oneof(message, oneof) is not None:
            raise BadValue(f"only one field of {oneof!r} can be set, and {which_oneof(message, oneof)!r} is")
        try:
            inner(message, value)
        except UnknownEnumName:
            if not skip_unknown:
                raise

    return store


def _setter(field: FieldDescriptor, codecs: Codecs) -> Fill:
    """Return the setter of a field or extension for a JSON value that is not null."""
    if field.is_repeated:
        return _store_map(field, codecs) if is_map(field) else _store_repeated(field, codecs)
    if field.message_type is not None:
        return _store_message(field, codecs)
    name, decode = field.name, decoder(field)
    if field.is_extension:
        return lambda message, value: extensions(message).__setitem__(field, decode(value))
    return lambda message, value: setattr(message, name, decode(value))


def _store_message(field: FieldDescriptor, codecs: Codecs) -> Fill:
    get, codec = _getter(field), codecs.of_descriptor(field.message_type)

    def store(message: Any, value: Any) -> None:
        sub = get(message)
        set_in_parent(sub)
        codec.fill(sub, value)

    return store


def _getter(field: FieldDescriptor) -> Callable[[Any], Any]:
    """Return message → value of the field or extension. A message or a repeated field is a reference."""
    return (lambda message: extensions(message)[field]) if field.is_extension else attrgetter(field.name)


def _store_repeated(field: FieldDescriptor, codecs: Codecs) -> Fill:
    get = _getter(field)
    skip_unknown = codecs.ignore_unknown and field.enum_type is not None
    codec = codecs.of_descriptor(field.message_type) if field.message_type is not None else None
    decode = decoder(field) if codec is None else None

    def store(message: Any, value: Any) -> None:
        if type(value) is not list:
            raise BadValue(f"expected an array, got {describe(value)}")
        target = get(message)
        index = 0
        try:
            if codec is not None:
                for index, one in enumerate(value):  # noqa: B007 - the index is for the error
                    codec.fill(target.add(), one)
            elif decode is not None:
                for index, one in enumerate(value):  # noqa: B007
                    try:
                        target.append(decode(one))
                    except UnknownEnumName:
                        if not skip_unknown:
                            raise
        except BadValue as error:
            error.path.append(f"[{index}]")
            raise

    return extend_strings(get, store) if field.type == FieldDescriptor.TYPE_STRING else store


def _store_map(field: FieldDescriptor, codecs: Codecs) -> Fill:
    name = field.name
    entry: Any = field.message_type.fields_by_name  # type: ignore[union-attr]
    decode_key = key_decoder(entry["key"])
    skip_unknown = codecs.ignore_unknown and entry["value"].enum_type is not None
    inner = entry["value"].message_type
    codec = codecs.of_descriptor(inner) if inner is not None else None
    decode = decoder(entry["value"]) if codec is None else None

    def store(message: Any, value: Any) -> None:
        if type(value) is not dict:
            raise BadValue(f"expected an object, got {describe(value)}")
        target = getattr(message, name)
        key = ""
        try:
            for key, one in value.items():
                at = decode_key(key)
                if codec is not None:
                    codec.fill(target[at], one)
                    continue
                try:
                    target[at] = decode(one)  # type: ignore[misc]
                except UnknownEnumName:
                    if not skip_unknown:
                        raise
        except BadValue as error:
            error.path.append(f'["{key}"]')
            raise

    return store
