"""Checks of messages by the rules of the contract: of requests, of events, and of any message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from google.protobuf.message import EncodeError, Message

from mesh.contract.model import EventTrigger, Method, generated_class
from mesh.faults import Fault, Faults
from mesh.message_methods import class_descriptor, descriptor_of
from mesh.rules.behaviors import BehaviorCheck, behavior_check
from mesh.rules.evaluation import Evaluation, RuleError, evaluation_of
from mesh.rules.violations import invalid

__all__ = ["Check", "event_check", "request_check", "validate"]

Check = Callable[[Any], None]
"""Checks a message.

Raises:
    InvalidArgument: The message violates a rule.
    RuntimeError: A rule failed while it was evaluated.
"""


def request_check(method: Method) -> Check | None:
    """Return the check of a method's requests, which clears or refuses OUTPUT_ONLY fields; None if there are no rules.

    An event that triggers the method is the message of its publisher, so its OUTPUT_ONLY fields are like others.

    Raises:
        Faults: A rule cannot be compiled.
    """
    message = generated_class(method.input)
    is_event = any(isinstance(trigger, EventTrigger) for trigger in method.triggers)
    output_only = None if is_event else "refuse" if method.refuse_output_only else "clear"
    exempt = {variable.field for route in method.routes for variable in route.template.variables}
    behaviors = behavior_check(class_descriptor(message), output_only=output_only, exempt=exempt)
    return _check(behaviors, _evaluation(message, method.place))


def event_check(message: type[Message]) -> Check | None:
    """Return the check of an event before it is published, or None if there are no rules.

    Raises:
        Faults: A rule cannot be compiled.
    """
    descriptor = class_descriptor(message)
    name = descriptor.full_name
    return _check(behavior_check(descriptor), _evaluation(message, name), f"{name} was not published")


def validate(message: Message) -> None:
    """Check a message by all rules of its type: ``buf.validate``, and REQUIRED of ``google.api.field_behavior``.

    The mesh does so with every request and every event. A function needs it for a message that it makes or reads
    itself.

    Raises:
        InvalidArgument: The message violates a rule. The detail ``google.rpc.BadRequest`` has the violations: the path
            of the field, the id of the rule as ``reason``, and the correct form.
        Faults: A rule of the type cannot be compiled.
        RuntimeError: A rule failed while it was evaluated.
    """
    cls = type(message)
    if cls not in _checks:
        descriptor = descriptor_of(message)
        _checks[cls] = _check(behavior_check(descriptor), _evaluation(cls, descriptor.full_name))
    check = _checks[cls]
    if check is not None:
        check(message)


_checks: WeakKeyDictionary[type[Message], Check | None] = WeakKeyDictionary()


def _evaluation(message: type[Message], place: str) -> Evaluation | None:
    try:
        return evaluation_of(message)
    except RuleError as error:
        raise Faults([Fault(place, f"a rule of {error.message} cannot be compiled: {error}")]) from error


def _check(behaviors: BehaviorCheck | None, evaluation: Evaluation | None, subject: str = "") -> Check | None:
    """Return a check by one or both kinds of rules. A field that is missing for both is reported once."""
    if behaviors is None:
        return None if evaluation is None else _rules_check(evaluation, subject)

    def check_both(message: Any) -> None:
        found = behaviors(message)
        if evaluation is not None:
            first = None if found else _first(evaluation, message)
            if first is None or first:
                known = set(found)
                found += [one for one in evaluation.violations(message, first) if one not in known]
        if found:
            raise invalid(found, subject)

    return check_both


def _rules_check(evaluation: Evaluation, subject: str) -> Check:
    violates, violations = evaluation

    def check_rules(message: Any) -> None:
        first = None
        try:
            first = violates(message)
            if not first:
                return
        except EncodeError:
            pass
        raise invalid(violations(message, first), subject)

    return check_rules


def _first(evaluation: Evaluation, message: Any) -> Any:
    """Return what ``evaluation.violates`` returns; None if it cannot tell."""
    try:
        return evaluation.violates(message)
    except EncodeError:
        return None
