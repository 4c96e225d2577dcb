"""Enforcement of ``google.api.field_behavior``: REQUIRED fields are set, OUTPUT_ONLY fields are not.

A REQUIRED field is set if a scalar without presence has another value than its default, a list or a map has an element,
and every other field is present. Fields within a message, a list or a map are checked wherever the message is set.

A message with a field ``update_mask`` (AIP-134) changes parts of the messages beside it. There a REQUIRED field has to
be set only if the mask names it, or something within it, or is ``*``. Without a mask only the fields that are set
change, so none is missing.

Source: google/api/field_behavior.proto, AIP-203, AIP-134.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mesh.message_methods import clear_field, has_field
from mesh.rules.field_behavior import OUTPUT_ONLY, REQUIRED, Behaviors
from mesh.rules.message_types import containing, is_map, reachable, value_type
from mesh.rules.violations import MAX_COUNTED, Violation, subscript

__all__ = ["BehaviorCheck", "behavior_check"]

_MASK, _MASK_TYPE = "update_mask", "google.protobuf.FieldMask"
FieldPath = tuple[str, ...]
"""Names of nested fields, outermost first."""
BehaviorCheck = Callable[[Any], list[Violation]]
"""Returns the violations of a message, and clears its OUTPUT_ONLY fields if they are to be cleared."""


def behavior_check(
    message: Descriptor, *, output_only: str | None = None, exempt: Collection[FieldPath] = ()
) -> BehaviorCheck | None:
    """Return the check of a message type, or None if no field within it has such a behavior.

    Args:
        message: The message type.
        output_only: ``"clear"`` or ``"refuse"`` OUTPUT_ONLY fields that are set; None: they are like other fields.
        exempt: Paths of OUTPUT_ONLY fields that are like other fields: a route takes them from its path.
    """
    plan = _Plan(message, output_only)
    if message.full_name not in plan.relevant:
        return None
    root = plan.node(message, tuple(exempt))

    def check(value: Any) -> list[Violation]:
        found: list[Violation] = []
        with contextlib.suppress(_EnoughError):
            root.walk(value, "", None, found)
        return found

    return check


class _EnoughError(Exception):
    """``MAX_COUNTED`` violations were found, so the rest of the message is not checked."""


class _Plan:
    """Nodes of a message type and of the types within it."""

    def __init__(self, message: Descriptor, output_only: str | None) -> None:
        self._behaviors = Behaviors(message.file.pool)
        self._output_only = output_only
        self._nodes: dict[tuple[str, frozenset[FieldPath]], _TypeCheck] = {}
        types = reachable(message)
        self._of = {field.full_name: self._behaviors.of(field) for one in types for field in one.fields}
        self.relevant = containing(types, lambda one: any(map(self._has, one.fields)))

    def _has(self, field: FieldDescriptor) -> bool:
        behaviors = self._of[field.full_name]
        return OUTPUT_ONLY in behaviors if self._output_only and OUTPUT_ONLY in behaviors else REQUIRED in behaviors

    def node(self, message: Descriptor, exempt: Sequence[FieldPath]) -> _TypeCheck:
        """Return the node of a type; types may contain themselves."""
        key = (message.full_name, frozenset(exempt))
        if key in self._nodes:
            return self._nodes[key]
        node = self._nodes[key] = _TypeCheck()
        node.clears = self._output_only == "clear"
        mask = message.fields_by_name.get(_MASK)
        node.masked = mask is not None and not mask.is_repeated and _is(mask.message_type, _MASK_TYPE)
        for field in message.fields:
            behaviors = self._of[field.full_name]
            if self._output_only and OUTPUT_ONLY in behaviors and (field.name,) not in exempt:
                node.output_only.append((field.name, _is_set(field)))
                continue
            if REQUIRED in behaviors and OUTPUT_ONLY not in behaviors:
                node.required.append((field.name, _is_set(field)))
            inner = value_type(field)
            if inner is not None and inner.full_name in self.relevant:
                below = [path[1:] for path in exempt if path[:1] == (field.name,) and path[1:]]
                shape = "map" if is_map(field) else "list" if field.is_repeated else "message"
                node.nested.append((field.name, field, shape, self.node(inner, below)))
        return node


class _TypeCheck:
    """Check of one message type."""

    __slots__ = ("clears", "masked", "nested", "output_only", "required")

    def __init__(self) -> None:
        self.required: list[tuple[str, Callable[[Any], bool]]] = []
        self.output_only: list[tuple[str, Callable[[Any], bool]]] = []
        self.nested: list[tuple[str, FieldDescriptor, str, _TypeCheck]] = []
        self.clears = False
        self.masked = False

    def walk(self, value: Any, prefix: str, mask: Sequence[str] | None, found: list[Violation]) -> None:
        """Add the violations of a message to ``found``.

        Args:
            value: The message.
            prefix: Path of the message, with its final dot.
            mask: Paths of the fields that have to be valid; None: all.
            found: The violations so far.

        Raises:
            _EnoughError: There are many.
        """
        for name, is_set in self.output_only:
            if is_set(value):
                if self.clears:
                    clear_field(value, name)
                else:
                    found.append(Violation(prefix + name, "output_only", "is set by the service; leave it out"))
        for name, is_set in self.required:
            if not is_set(value) and (mask is None or _within(mask, name) != []):
                found.append(Violation(prefix + name, "required", "value is required"))
        if len(found) >= MAX_COUNTED:
            raise _EnoughError
        if self.nested:
            self._walk_nested(value, prefix, mask, found)

    def _walk_nested(self, value: Any, prefix: str, mask: Sequence[str] | None, found: list[Violation]) -> None:
        below = list(getattr(value, _MASK).paths) if self.masked else None
        for name, field, shape, node in self.nested:
            inner = None if mask is None else _within(mask, name)
            path = prefix + name
            if shape == "message":
                if has_field(value, name):
                    node.walk(getattr(value, name), f"{path}.", inner if below is None else below, found)
            elif shape == "list":
                for index, element in enumerate(getattr(value, name)):
                    node.walk(element, f"{path}[{index}].", inner, found)
            else:
                for key, element in getattr(value, name).items():
                    node.walk(element, f"{path}{subscript(key, field)}.", inner, found)


def _within(mask: Sequence[str], name: str) -> list[str] | None:
    """Return the paths of a mask that lie within a field; None if the mask names the whole field."""
    found = []
    for path in mask:
        if path in ("*", name):
            return None
        if path.startswith(f"{name}."):
            found.append(path[len(name) + 1 :])
    return found


def _is(message: Descriptor | None, name: str) -> bool:
    return message is not None and message.full_name == name


def _is_set(field: FieldDescriptor) -> Callable[[Any], bool]:
    name = field.name
    if field.is_repeated or not field.has_presence:
        return lambda message: bool(getattr(message, name))
    return lambda message: has_field(message, name)
