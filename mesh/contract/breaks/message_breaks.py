"""Breaking changes of messages and enums: binary and JSON form. Pure.

The basis is the category WIRE_JSON of buf. The differences, each with its reason (``tests/contract/test_breaks_buf.py``
holds the rest to buf):

- A oneof is compared by the fields that exclude each other, not by its name. Names of oneofs are neither in the binary
  form nor in JSON, and a single field may move into a new oneof
  (https://protobuf.dev/programming-guides/proto3/#backward).
- A signed integer that becomes unsigned, or the other way round, is another type: values out of the common range
  change.
- An enum with another name and the same values is the same type: neither form has its name.
- A removed field of a request is a change that clients notice, also when it is reserved: JSON fields that a message
  does not have are refused, by HTTP routes and by the Connect protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.compared_contracts import ComparedContracts

__all__ = ["message_breaks"]

_RESERVED_MAX = 2**29
_TYPES = {
    number: name.removeprefix("TYPE_").lower() for name, number in vars(FieldDescriptor).items() if name[:5] == "TYPE_"
}
_SAME_BINARY = (
    frozenset({"int32", "int64", "uint32", "uint64", "bool", "enum"}),
    frozenset({"sint32", "sint64"}),
    frozenset({"fixed32", "sfixed32"}),
    frozenset({"fixed64", "sfixed64"}),
    frozenset({"string", "bytes"}),
)
"""Types that are encoded alike (https://protobuf.dev/programming-guides/proto3/#updating)."""
_WIDE = frozenset({"int64", "uint64", "sint64", "fixed64", "sfixed64"})
"""Types that JSON writes as strings."""


def message_breaks(both: ComparedContracts) -> Iterator[Break]:
    """Yield the breaking changes of all messages and enums that both contracts have."""
    names = both.old_elements.own | both.old_users.used()
    for name in sorted(names & both.old_elements.messages.keys() & both.new_elements.messages.keys()):
        yield from _Message(both, name).breaks()
    for name in sorted(names & both.old_elements.enums.keys() & both.new_elements.enums.keys()):
        yield from _enum_breaks(both, name)


class _Message:
    """Comparison of one message."""

    def __init__(self, both: ComparedContracts, name: str) -> None:
        self.both = both
        self.name = name
        self.old, self.new = both.old.pool.FindMessageTypeByName(name), both.new.pool.FindMessageTypeByName(name)
        self.old_proto, self.new_proto = both.old_elements.messages[name], both.new_elements.messages[name]
        self.users = both.old_users.of(name)

    def breaks(self) -> Iterator[Break]:
        old, new = _fields(self.both.old.pool, self.old), _fields(self.both.new.pool, self.new)
        for number, field in old.items():
            if number not in new:
                yield from self._removed(field)
            else:
                yield from self._changed(field, new[number])
        for number in old.keys() & new.keys():
            yield from self._oneof(old[number], new[number])
        for number in new.keys() - old.keys():
            if new[number].is_required:
                yield self._break(
                    "REQUIRED_LABEL_CHANGED", new[number], f"the new field {_label(new[number])} is required",
                    f"messages without it cannot be decoded: those of {self.users.text()}", "declare it optional",
                )  # fmt: skip
        yield from _unreserved(self.both, self.name, self.old_proto, self.new_proto)

    def _break(self, rule: str, field: FieldDescriptor, change: str, affected: str, compatible: str) -> Break:
        place = self.both.new_elements.place(f"{self.name}.{field.name}", self.name)
        return Break(place, rule, f"{self.name}.{_short(field)}", change, affected, compatible)

    def _removed(self, field: FieldDescriptor) -> Iterator[Break]:
        number, name = field.number, field.name
        reserved = [any(one.start <= number < one.end for one in self.new_proto.reserved_range)]
        reserved.append(name in self.new_proto.reserved_name)
        keep = f'keep it, with [deprecated = true]; or reserve both: reserved {number}; reserved "{name}";'
        if field.is_extension:
            yield self._break(
                "FIELD_REMOVED", field, f"the extension {_label(field)} is gone", f"{self.users.text()} lose its value",
                "keep it, with [deprecated = true]",
            )  # fmt: skip
        elif not all(reserved):
            missing = " and ".join(text for text, is_in in zip(("number", "name"), reserved, strict=True) if not is_in)
            yield self._break(
                "FIELD_REMOVED", field, f"the field {_label(field)} is gone and its {missing} can be used again",
                f"{self.users.text()} lose its value, and would misread a later field with its {missing}", keep,
            )  # fmt: skip
        elif refused := self.users.refused(ignores_unknown_json=self.both.ignores_unknown_json):
            yield self._break(
                "REQUEST_FIELD_REMOVED", field, f"the field {_label(field)} is gone",
                f"clients of {refused} that send it in JSON or a query get 400",
                "keep it, with [deprecated = true], until no client sends it; or [edge] ignore_unknown_fields = true",
            )  # fmt: skip
        if field.is_required:
            yield self._break(
                "REQUIRED_LABEL_CHANGED", field, f"the required field {_label(field)} is gone",
                f"{self.users.text()} cannot decode messages without it", "keep it",
            )  # fmt: skip

    def _changed(self, old: FieldDescriptor, new: FieldDescriptor) -> Iterator[Break]:
        users = self.users.text()
        if old.name != new.name:
            yield self._break(
                "FIELD_RENAMED", new, f"the field {old.number} was {old.name} and is {new.name} now",
                f"JSON, query parameters and field masks have names: {users}",
                f"keep {old.name}, and add a new field with the new name",
            )  # fmt: skip
        elif old.json_name != new.json_name:
            yield self._break(
                "FIELD_RENAMED", new, f"the JSON name of {old.name} was {old.json_name} and is {new.json_name} now",
                f"JSON clients send and expect {old.json_name}: {users}", f'keep json_name = "{old.json_name}"',
            )  # fmt: skip
        old_kind, new_kind = _cardinality(old), _cardinality(new)
        if old_kind != new_kind:
            yield self._break(
                "FIELD_CARDINALITY_CHANGED", new, f"{_label(new)} was {old_kind} and is {new_kind} now",
                f"JSON has another form, and binary values are lost: {users}", "add a new field",
            )  # fmt: skip
        elif (differences := _type_difference(old, new)) is not None:
            change, affected = differences
            yield self._break(
                "FIELD_TYPE_CHANGED", new, f"{_label(new)} was {change} now", f"{affected}: {users}",
                "add a new field with the new type, and keep this one",
            )  # fmt: skip
        elif old_kind == "a single value" and old.message_type is None and _default(old) != _default(new):
            yield self._break(
                "FIELD_DEFAULT_CHANGED", new,
                f"the default of {_label(new)} was {_default(old)!r} and is {_default(new)!r} now",
                f"messages without the field read differently: {users}", "keep the default",
            )  # fmt: skip
        if old.is_required != new.is_required:
            yield self._break(
                "REQUIRED_LABEL_CHANGED", new,
                f"{_label(new)} is {'required' if new.is_required else 'no longer required'}",
                f"messages without it cannot be decoded on one side: {users}", "keep the label",
            )  # fmt: skip

    def _oneof(self, old: FieldDescriptor, new: FieldDescriptor) -> Iterator[Break]:
        before, after = _excludes(old) & _numbers(self.new), _excludes(new) & _numbers(self.old)
        if before == after:
            return
        joined, left = sorted(after - before), sorted(before - after)
        if joined:
            names = ", ".join(self.new.fields_by_number[number].name for number in joined)
            change = f"{_label(new)} and {names} exclude each other now"
            affected = f"messages that set both lose one: {self.users.text()}"
        else:
            names = ", ".join(self.old.fields_by_number[number].name for number in left)
            change = f"{_label(new)} and {names} can be set together now"
            affected = f"readers with the old contract lose one of them: {self.users.text()}"
        yield self._break(
            "FIELD_ONEOF_CHANGED",
            new,
            change,
            affected,
            "add new fields to a oneof, and leave the others",
        )


def _fields(pool: DescriptorPool, message: Descriptor) -> dict[int, FieldDescriptor]:
    """Return fields and extensions by number."""
    extensions: list[FieldDescriptor] = []
    if message.is_extendable:
        finder: Any = pool
        extensions = finder.FindAllExtensions(message)
    return {field.number: field for field in (*message.fields, *extensions)}


def _short(field: FieldDescriptor) -> str:
    return f"[{field.full_name}]" if field.is_extension else field.name


def _label(field: FieldDescriptor) -> str:
    return f"{_short(field)} ({field.number})"


def _default(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_number[field.default_value].name
    return repr(field.default_value) if isinstance(field.default_value, float) else field.default_value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _cardinality(field: FieldDescriptor) -> str:
    if _is_map(field):
        return "a map"
    return "repeated" if field.is_repeated else "a single value"


def _excludes(field: FieldDescriptor) -> set[int]:
    """Return the numbers of the fields that share a oneof with a field, itself included."""
    oneof = field.containing_oneof
    return {field.number} if oneof is None else {one.number for one in oneof.fields}


def _numbers(message: Descriptor) -> set[int]:
    return set(message.fields_by_number)


def _type_difference(old: Any, new: Any) -> tuple[str, str] | None:
    """Return the two types and the consequence, or None if every value keeps its meaning in both forms."""
    if _is_map(old) and _is_map(new):
        for part in ("key", "value"):
            found = _type_difference(*(one.message_type.fields_by_name[part] for one in (old, new)))
            if found is not None:
                return f"a map whose {part} was {found[0]}", found[1]
        return None
    old_name, new_name = _type_name(old), _type_name(new)
    same = _TYPES[old.type] == _TYPES[new.type]
    renamed = same and old.enum_type is not None and _includes(new.enum_type, old.enum_type)
    if (same and old_name == new_name) or renamed:
        return None
    return f"{old_name} and is {new_name}", _consequence(_TYPES[old.type], _TYPES[new.type])


def _consequence(old: str, new: str) -> str:
    """Return the consequence of another type."""
    if old == new:
        return f"it is another {old}"
    if not any(old in group and new in group for group in _SAME_BINARY):
        return "binary values are lost, and JSON has another form"
    if "bytes" in (old, new):
        return "bytes that are not UTF-8 cannot be decoded, and JSON has base64"
    if (old in _WIDE) == (new in _WIDE) and not {"bool", "enum"} & {old, new}:
        return "values out of the common range change"
    return "JSON has another form"


def _type_name(field: FieldDescriptor) -> str:
    kind = field.message_type or field.enum_type
    return kind.full_name if kind is not None else _TYPES[field.type]


def _includes(new: EnumDescriptor, old: EnumDescriptor) -> bool:
    """Whether an enum has every value of another one, with the same name."""
    return all(
        name in new.values_by_name and new.values_by_name[name].number == value.number
        for name, value in old.values_by_name.items()
    )


def _enum_breaks(both: ComparedContracts, name: str) -> Iterator[Break]:
    old, new = both.old_elements.enums[name], both.new_elements.enums[name]
    users = both.old_users.of(name)
    old_names, new_names = _names_by_number(old), _names_by_number(new)
    for number, names in old_names.items():
        first = names[0]
        place = both.new_elements.place(f"{name}.{first}", name)
        element = f"{name}.{first}"
        if number not in new_names:
            reserved = any(one.start <= number <= one.end for one in new.reserved_range)
            reserved = reserved and all(one in new.reserved_name for one in names)
            rule = "ENUM_VALUE_REMOVED"
            affected = f"{users.text()} that have it get an unknown value, or misread a later one"
            compatible = f'keep it, with [deprecated = true]; or reserve both: reserved {number}; reserved "{first}";'
            if reserved:
                refused = users.refused(ignores_unknown_json=both.ignores_unknown_json)
                if not refused:
                    continue
                rule = "REQUEST_ENUM_VALUE_REMOVED"
                affected = f"clients of {refused} that send it in JSON or a query get 400"
                compatible = "keep it, with [deprecated = true], until no client sends it"
            yield Break(place, rule, element, f"the value {first} ({number}) is gone", affected, compatible)
        elif new_names[number][0] != first or not set(names) <= set(new_names[number]):
            lost = [one for one in names if one not in new_names[number]]
            change = f"the value {number} was {first} and is {new_names[number][0]} now"
            if new_names[number][0] == first:
                change = f"the value {number} is no longer called {', '.join(lost)}"
            place = both.new_elements.place(f"{name}.{new_names[number][0]}", name)
            yield Break(
                place, "ENUM_VALUE_RENAMED", element, change, f"JSON has the names of values: {users.text()}",
                f"keep {first} as the first name; add the new name behind it as an alias, with option allow_alias",
            )  # fmt: skip
    yield from _unreserved(both, name, old, new)


def _names_by_number(enum: EnumDescriptorProto) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for value in enum.value:
        names.setdefault(value.number, []).append(value.name)
    return names


def _unreserved(
    both: ComparedContracts,
    name: str,
    old: DescriptorProto | EnumDescriptorProto,
    new: DescriptorProto | EnumDescriptorProto,
) -> Iterator[Break]:
    """Yield a break if a reserved number or name is free again."""
    free = [one for one in old.reserved_name if one not in new.reserved_name]
    extra = 1 if isinstance(old, EnumDescriptorProto) else 0  # ranges of enums include their end
    ranges = sorted((one.start, one.end + extra) for one in new.reserved_range)
    for one in old.reserved_range:
        start, end = one.start, one.end + extra
        for low, high in ranges:
            if low <= start < high:
                start = high
        if start < end:
            free.append(f"{one.start}" if end - one.start == 1 else f"{one.start} to {_end(end)}")
    if free:
        yield Break(
            both.new_elements.place(name), "RESERVED_REMOVED", name, f"{', '.join(free)} no longer reserved",
            f"values that are stored would be misread as a later field or value: {both.old_users.of(name).text()}",
            "keep it reserved",
        )  # fmt: skip


def _end(end: int) -> str:
    return "max" if end >= _RESERVED_MAX else str(end - 1)
