"""Evaluation of ``buf.validate`` rules by protovalidate, for generated message classes of any descriptor pool."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import EncodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.message_methods import class_descriptor, list_fields, missing, serialize_partial
from mesh.rules.message_types import containing, reachable
from mesh.rules.violations import Violation, from_protovalidate

if TYPE_CHECKING:
    from protovalidate import Validator

__all__ = ["Evaluation", "RuleError", "broken_rule", "evaluation_of", "has_rules", "violations_of"]

EXTENSION_NUMBER = 1159
"""Number of ``buf.validate``'s extensions of message, oneof and field options (buf/validate/validate.proto)."""
MAX_LISTED_SIZE = 64 * 2**10
"""Bytes of the largest message whose violations are all listed; of a larger one only the first is. A violation takes a
kilobyte of memory, and a message of 4 MiB may have a million."""

_TYPE_ERRORS = ("no_such_field", "No matching overload", "unexpected type", "undeclared reference", "unknown function")
"""Parts of the texts of evaluation errors that no value of a field can cause, unless an expression has dynamic types.
protovalidate finds mistakes in the types of a CEL expression when it evaluates it."""
_DYNAMIC = frozenset(f"google.protobuf.{name}" for name in ("Any", "ListValue", "Struct", "Value"))
"""Message types whose content has the type that a message says."""


class Evaluation(NamedTuple):
    """Evaluation of the rules of one message type. Both raise RuntimeError for a rule that fails while it is evaluated.

    Attributes:
        violates: Returns a list that is empty unless a message violates a rule: the fastest call that protovalidate
            has. Raises EncodeError for a message of proto2 without a required field.
        violations: Returns the violations of a message, given what ``violates`` has returned, or None.
    """

    violates: Callable[[Any], Any]
    violations: Callable[[Any, Any], list[Violation]]


class RuleError(Exception):
    """A rule cannot be compiled.

    Attributes:
        message: Full name of the message type.
    """

    def __init__(self, message: str, text: str) -> None:
        super().__init__(text)
        self.message = message


def has_rules(message: Descriptor) -> bool:
    """Whether a message type has rules of its own: for itself, a field or a oneof."""
    return any(map(_has_extension, (message, *message.fields, *message.oneofs)))


def evaluation_of(message: type[Message]) -> Evaluation | None:
    """Return the evaluation of a message type's rules; None if neither the type nor a type within it has one.

    Raises:
        RuleError: A rule cannot be compiled.
    """
    descriptor = class_descriptor(message)
    types = reachable(descriptor)
    if descriptor.full_name not in containing(types, has_rules):
        return None
    for one in types:
        text = broken_rule(message_factory.GetMessageClass(one)) if has_rules(one) else None
        if text is not None:
            raise RuleError(one.full_name, text)
    collect = _validator(class_descriptor(message).file.pool).collect_violations
    first = functools.partial(collect, fail_fast=True)

    def violations(value: Message, found: Any) -> list[Violation]:
        try:
            if len(serialize_partial(value)) <= MAX_LISTED_SIZE:
                found = collect(value)
            elif found is None:
                found = first(value)
        except EncodeError:  # CEL gets a whole message in its binary form
            return [Violation(path, "required", "value is required") for path in missing(value)]
        return [from_protovalidate(violation, descriptor) for violation in found]

    return Evaluation(first, violations)


def broken_rule(message: type[Message]) -> str | None:
    """Return the error of a rule of this type that cannot be compiled, or None. Compiles all rules of the type."""
    import protovalidate  # noqa: PLC0415 - see mesh.rules

    try:
        _validator(class_descriptor(message).file.pool).collect_violations(message())
    except protovalidate.CompilationError as error:
        return _one_line(error)
    except protovalidate.EvaluationError as error:
        text = _one_line(error)
        return text if any(part in text for part in _TYPE_ERRORS) and not _is_dynamic(message) else None
    except EncodeError:  # of a proto2 message with required fields
        return None
    return None


def violations_of(message: type[Message]) -> list[Violation]:
    """Return the violations of the empty message of a type whose rules are valid."""
    import protovalidate  # noqa: PLC0415 - see mesh.rules

    descriptor = class_descriptor(message)
    try:
        found = _validator(descriptor.file.pool).collect_violations(message())
        return [from_protovalidate(violation, descriptor) for violation in found]
    except (protovalidate.EvaluationError, EncodeError):
        return []


def _is_dynamic(message: type[Message]) -> bool:
    """Whether types of the rules' CEL expressions may depend on the values of a message."""
    descriptor = class_descriptor(message)
    declared: list[Any] = [descriptor, *descriptor.fields, *descriptor.oneofs]
    return any(b"dyn(" in one.GetOptions().SerializeToString() for one in declared) or any(
        one.full_name in _DYNAMIC for one in reachable(descriptor)
    )


def _one_line(error: Exception) -> str:
    """Return the first line of an error. CEL's errors draw the expression in further lines."""
    return str(error).partition("\n")[0]


@functools.lru_cache(maxsize=8)
def _validator(_pool: DescriptorPool) -> Validator:
    """Return the validator of a pool's messages. It compiles the rules of a type once, and knows a type by its name."""
    import protovalidate  # noqa: PLC0415 - see mesh.rules

    return protovalidate.Validator()


def _has_extension(described: Any) -> bool:
    """Whether a declaration has an option of ``buf.validate``. It is unknown where validate_pb2 is not imported."""
    if not described.has_options:
        return False
    options = described.GetOptions()
    unknown: Any = UnknownFieldSet(options)
    return any(field.number == EXTENSION_NUMBER for field, _ in list_fields(options)) or any(
        field.field_number == EXTENSION_NUMBER for field in unknown
    )
