"""Violations of rules, and the INVALID_ARGUMENT error that reports them.

Source: buf/validate/validate.proto (``Violation``, ``FieldPath``), google/rpc/error_details.proto (``BadRequest``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc.error_details_pb2 import BadRequest

from mesh.errors import InvalidArgument
from mesh.redaction import REDACTED
from mesh.rules.message_types import is_map, value_type

__all__ = ["MAX_COUNTED", "Violation", "from_protovalidate", "invalid", "subscript"]

MAX_DETAIL_BYTES = 2400
"""Largest ``BadRequest`` that is sent. Larger details do not fit into the trailers of a call (``mesh.rpc.status``)."""
MAX_TEXT_LENGTH = 400
"""Longest description, in characters. A CEL expression may build a text of any length from a request."""
MAX_COUNTED = 10_000
"""Violations of ``google.api.field_behavior`` that are counted. A message of 4 MiB may have millions."""
_MAX_NAMED = 3
"""Number of violations that the message of the status names."""


class Violation(NamedTuple):
    """One violation.

    Attributes:
        path: Path of the field, as protovalidate writes it: ``items[0].tags["a"]``; ``""`` for the message itself.
        rule: Id of the rule, ``string.min_len``.
        text: The correct form, as text.
    """

    path: str
    rule: str
    text: str

    def __str__(self) -> str:
        text = self.text if len(self.text) <= MAX_TEXT_LENGTH else f"{self.text[:MAX_TEXT_LENGTH]}…"
        path = self.path if len(self.path) <= MAX_TEXT_LENGTH else f"{self.path[:MAX_TEXT_LENGTH]}…"
        text = text or "is invalid"
        return f"{path}: {text} ({self.rule})" if path else f"{text} ({self.rule})"


def from_protovalidate(violation: Any, message: Descriptor) -> Violation:
    """Return a violation of protovalidate's Python package (``protovalidate.Violation``).

    Args:
        violation: The violation.
        message: Type of the message that was checked.
    """
    found = violation.proto
    path = "" if found.field is None else field_path(found.field.elements, message)
    return Violation(path, found.rule_id, found.message)


def field_path(elements: Sequence[Any], message: Descriptor) -> str:
    """Return a ``buf.validate.FieldPath`` as text: ``items[0].tags["a"].name``.

    Args:
        elements: The elements of the path.
        message: Message type in which it begins.
    """
    parts = []
    within: Descriptor | None = message
    for element in elements:
        field = None if within is None else within.fields_by_name.get(element.field_name)
        within_list = "" if element.subscript is None else subscript(element.subscript.value, field)
        parts.append(f"{element.field_name}{within_list}")
        within = None if field is None else value_type(field)
    return ".".join(parts)


def subscript(value: Any, field: FieldDescriptor | None) -> str:
    """Return an index of a list or a key of a map as text. The keys of a secret field (``debug_redact``) are not shown.

    Errors stand in spans and logs.

    Args:
        value: The index or key.
        field: The list or map; None: it is not known.
    """
    if field is not None and field.GetOptions().debug_redact and is_map(field):
        return REDACTED
    return f"[{json.dumps(value, ensure_ascii=False)}]"


def invalid(violations: Sequence[Violation], subject: str = "") -> InvalidArgument:
    """Return the error of a message that violates rules.

    Violations that would not fit into the trailers of a call are counted in the message of the status.

    Args:
        violations: At least one violation.
        subject: Beginning of the message, such as ``a.v1.Moved was not published``; ``""``: none.
    """
    detail = BadRequest()
    for violation in violations:
        added = detail.field_violations.add(
            field=_cut(violation.path), description=_cut(violation.text), reason=violation.rule
        )
        if detail.ByteSize() > MAX_DETAIL_BYTES and len(detail.field_violations) > 1:
            detail.field_violations.remove(added)
            break
    named = "; ".join(map(str, violations[:_MAX_NAMED]))
    more = len(violations) - _MAX_NAMED
    least = "at least " if len(violations) >= MAX_COUNTED else ""
    text = f"{named}; and {least}{more} more" if more > 0 else named
    return InvalidArgument(f"{subject}: {text}" if subject else text, details=[detail])


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_LENGTH else f"{text[:MAX_TEXT_LENGTH]}…"
