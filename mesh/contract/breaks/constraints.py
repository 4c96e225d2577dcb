"""Constraints of fields and messages (``buf.validate``, ``google.api.field_behavior``) as flat values to compare. Pure.

The options are read with the classes of the contract's own pool, by the names of their fields, so every version of
buf/validate/validate.proto can be read: https://github.com/bufbuild/protovalidate (validate.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.message_methods import list_fields, serialize

__all__ = ["Constraints", "ConstraintsReader", "refuses_zero", "tightened"]

Constraints = dict[str, Any]
"""Name of a rule (``string.min_len``, ``repeated.items.int32.gt``, ``cel[id]``) → its value."""

_BOUNDS = {"gt": (0, True), "gte": (0, False), "lt": (1, True), "lte": (1, False)}
_AT_LEAST = ("min_len", "min_bytes", "min_items", "min_pairs")
_AT_MOST = ("max_len", "max_bytes", "max_items", "max_pairs", "within")
_EXACT = {"len": ("min_len", "max_len"), "len_bytes": ("min_bytes", "max_bytes")}
_WIDER = {
    ("uri", "uri_ref"), ("ipv4", "ip"), ("ipv6", "ip"), ("hostname", "address"), ("ip", "address"), ("ipv4", "address"),
    ("ipv6", "address"), ("ip_prefix", "ip_with_prefixlen"), ("ipv4_prefix", "ip_prefix"), ("ipv6_prefix", "ip_prefix"),
    ("ipv4_with_prefixlen", "ip_with_prefixlen"), ("ipv6_with_prefixlen", "ip_with_prefixlen"),
}  # fmt: skip
"""Formats of strings: one, and another one that accepts all its values."""
_PERMISSIVE = ("ignore", "example", "disabled", "strict")
_ABOUT_VALUES = ("ignore", "example", "unique", "finite", "strict", "defined_only")
"""Rules that a field without a value satisfies."""
_WIDENED: Mapping[str, Callable[[Any, Any], bool]] = {
    **dict.fromkeys(_AT_LEAST, lambda old, new: new <= old),
    **dict.fromkeys(_AT_MOST, lambda old, new: new >= old),
    "in": lambda old, new: set(old) <= set(new),
    "not_in": lambda old, new: set(new) <= set(old),
    "prefix": lambda old, new: old.startswith(new),
    "suffix": lambda old, new: old.endswith(new),
    "contains": lambda old, new: new in old,
}
"""Rule → whether its new value accepts all that the old one accepts."""


class ConstraintsReader:
    """Reader of the constraints of one contract.

    Args:
        pool: Descriptor pool of the contract.
    """

    def __init__(self, pool: DescriptorPool) -> None:
        self._extensions: dict[str, Any] = {}
        for name in ("field", "message", "oneof"):
            self._extensions[name] = _extension(pool, f"buf.validate.{name}")
        self._behavior = _extension(pool, "google.api.field_behavior")

    def of_field(self, field: Any) -> Constraints:
        """Return the constraints of a field; ``required`` also for the behavior REQUIRED."""
        found = self.rules_of_field(field)
        if "REQUIRED" in self.behaviors(field):
            found["required"] = True
        return found

    def rules_of_field(self, field: Any) -> Constraints:
        """Return the constraints of a field by ``buf.validate`` only."""
        return self._read("field", field)

    def of_message(self, message: Any) -> Constraints:
        """Return the constraints of a message: CEL expressions, and oneofs by rule."""
        return self._read("message", message)

    def of_oneof(self, oneof: Any) -> Constraints:
        """Return the constraints of a oneof."""
        return self._read("oneof", oneof)

    def behaviors(self, field: Any) -> frozenset[str]:
        """Return the names of ``google.api.field_behavior`` of a field."""
        options = _own_options(self._behavior, field)
        if options is None:
            return frozenset()
        names = self._behavior.enum_type.values_by_number
        return frozenset(names[one].name for one in options.Extensions[self._behavior] if one in names)

    def _read(self, kind: str, element: Any) -> Constraints:
        extension = self._extensions[kind]
        options = _own_options(extension, element)
        if options is None or not options.HasExtension(extension):
            return {}
        found = dict(_flat(options.Extensions[extension], ""))
        for name in [name for name in found if name.rpartition(".")[2] in _EXACT]:
            prefix, dot, last = name.rpartition(".")
            for bound in _EXACT[last]:
                found[f"{prefix}{dot}{bound}"] = found[name]
            del found[name]
        for name in [name for name in found if name.rpartition(".")[2] == "const"]:
            found[f"{name.removesuffix('const')}in"] = (found.pop(name),)
        return found


def _extension(pool: DescriptorPool, name: str) -> Any:
    try:
        return pool.FindExtensionByName(name)
    except KeyError:
        return None


def _own_options(extension: Any, element: Any) -> Any:
    """Return the options of an element in the class that knows the extension, or None without the extension."""
    if extension is None:
        return None
    kind: Any = message_factory.GetMessageClass(extension.containing_type)
    return kind.FromString(serialize(element.GetOptions()))


def _flat(message: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield rules with their values. A CEL expression has the name ``cel[id]``; a rule of a user ``[its.name]``."""
    for field, value in list_fields(message):
        name = f"{prefix}[{field.full_name}]" if field.is_extension else f"{prefix}{field.name}"
        if field.message_type is None:
            yield name, tuple(value) if field.is_repeated else value
        elif field.is_repeated:
            for one in value:
                yield from _listed(name, one)
        elif field.message_type.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
            yield name, (value.seconds, value.nanos)
        else:
            yield from _flat(value, f"{name}.")


def _listed(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the rules of one message of a list: of a CEL expression, of a oneof of fields, of an accepted duration."""
    fields = {field.name: one for field, one in list_fields(value)}
    if "expression" in fields:
        yield f"{name}[{fields.get('id') or fields['expression']}]", fields["expression"]
    elif "fields" in fields:
        oneof = f"{name}[{', '.join(fields['fields'])}]"
        yield oneof, "at most one"
        yield f"{oneof}.required", bool(fields.get("required"))
    else:
        yield f"{name}[{serialize(value).hex()}]", True


def tightened(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield a text for each rule of ``new`` that refuses values which ``old`` accepts, or may refuse them."""
    groups = {_group(name) for name in new}
    for group in sorted(groups):
        yield from _bounds(group, old, new)
    for name, value in new.items():
        last = name.rpartition(".")[2]
        if last not in _PERMISSIVE and last not in _BOUNDS and not _accepts_all(name, last, old, value):
            before = f"was {_shown(old[name])}" if name in old else "is new"
            yield f"{name} = {_shown(value)} {before}"
    if new and new.get("ignore", 0) != old.get("ignore", 0) and old.get("ignore"):
        order = (0, 1, 2, 3)
        if order.index(new.get("ignore", 0)) < order.index(old["ignore"]):
            yield "ignore is narrower, so its rules apply to more values"
    if old.get("disabled") and not new.get("disabled") and len(new) > 0:
        yield "its rules are no longer disabled"


def _group(name: str) -> str:
    return name.rpartition(".")[0]


def _range(group: str, rules: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the lower and the upper bound of a group, each (value, exclusive), or None."""
    bounds: list[Any] = [None, None]
    prefix = f"{group}." if group else ""
    for name, (side, exclusive) in _BOUNDS.items():
        value = rules.get(f"{prefix}{name}")
        if value is not None:
            bounds[side] = (value, exclusive)
    return bounds[0], bounds[1]


def _bounds(group: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    low, high = _range(group, new)
    old_low, old_high = _range(group, old)
    if (low, high) == (old_low, old_high) or (low is None and high is None):
        return
    # A range with the lower bound above the upper one accepts what is outside (validate.proto, Int32Rules.gt).
    narrower = any(one and two and one[0] > two[0] for one, two in ((low, high), (old_low, old_high)))
    if low is not None:
        narrower |= old_low is None or low[0] > old_low[0] or (low[0] == old_low[0] and low[1] > old_low[1])
    if high is not None:
        narrower |= old_high is None or high[0] < old_high[0] or (high[0] == old_high[0] and high[1] > old_high[1])
    if narrower:
        yield f"{group} must be {_interval(low, high)} now, and {_interval(old_low, old_high)} before"


def _interval(low: Any, high: Any) -> str:
    texts = [f"{'>' if low[1] else '>='} {_shown(low[0])}"] if low is not None else []
    texts += [f"{'<' if high[1] else '<='} {_shown(high[0])}"] if high is not None else []
    return " and ".join(texts) or "any value"


def _accepts_all(name: str, last: str, old: Mapping[str, Any], value: Any) -> bool:
    """Whether a rule accepts every value that the old rules accept."""
    before = old.get(name)
    prefix = name.removesuffix(last)
    if before == value or value is False:
        return True
    if value is True:
        return any(old.get(f"{prefix}{one}") is True for one, wide in _WIDER if wide == last)
    if last not in _WIDENED or type(before) is not type(value):
        return False
    return bool(_WIDENED[last](before, value))


def refuses_zero(rules: Mapping[str, Any], *, has_presence: bool) -> str:
    """Return the rule that refuses a message in which the field is not set, or ``""``.

    Rules of a field with presence do not apply while it is not set, apart from ``required`` (validate.proto, Ignore).
    Rules whose result cannot be told here (patterns, CEL) count as refusing.
    """
    if rules.get("required"):
        return "required"
    if has_presence or rules.get("ignore"):
        return ""
    return next((name for name, value in rules.items() if not _accepts_zero(name, value)), "")


def _accepts_zero(name: str, value: Any) -> bool:
    group, _, last = name.rpartition(".")
    if "." in group or last in _ABOUT_VALUES or last in _AT_MOST or value is False:
        return True  # rules of items and keys, of which there are none; rules that zero satisfies
    if last in _BOUNDS:
        side, exclusive = _BOUNDS[last]
        zero: Any = (0, 0) if isinstance(value, tuple) else 0
        return bool((zero > value if side == 0 else zero < value) or (not exclusive and zero == value))
    if last in _AT_LEAST:
        return not value
    has_zero = last in ("in", "not_in") and any(one in (0, "", b"") for one in value)
    return has_zero if last != "not_in" else not has_zero


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, int) for one in value):  # noqa: PLR2004 - seconds, nanos
        return f"{value[0]}.{value[1]:09}".rstrip("0").rstrip(".") + " s"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(repr, value)) + "]"
    return "true" if value is True else repr(value)
