"""Breaking changes of the rules that requests and events are checked against. Pure.

The mesh checks the rules of requests before a function runs, and those of events before they are published and before
they are delivered. It does not check responses, so a rule of a message that occurs in responses only breaks nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.compared_contracts import ComparedContracts
from mesh.contract.breaks.constraints import ConstraintsReader, refuses_zero, tightened
from mesh.contract.breaks.message_users import Users

__all__ = ["constraint_breaks"]

_COMPATIBLE = "keep the rule, or check it in the function and warn first"


def constraint_breaks(both: ComparedContracts) -> Iterator[Break]:
    """Yield the rules that refuse requests or events which the old contract accepts."""
    readers = ConstraintsReader(both.old.pool), ConstraintsReader(both.new.pool)
    names = both.old_users.used() & both.old_elements.messages.keys() & both.new_elements.messages.keys()
    for name in sorted(names):
        users = both.old_users.of(name)
        if users.checked:
            yield from _message(both, name, readers, users)


def _message(
    both: ComparedContracts, name: str, readers: tuple[ConstraintsReader, ConstraintsReader], users: Users
) -> Iterator[Break]:
    before, after = readers
    old, new = both.old.pool.FindMessageTypeByName(name), both.new.pool.FindMessageTypeByName(name)
    who = _who(users)

    def found(rule: str, element: str, change: str, compatible: str = _COMPATIBLE, affected: str = "") -> Break:
        return Break(both.new_elements.place(element, name), rule, element, change, affected or who, compatible)

    for text in tightened(before.of_message(old), after.of_message(new)):
        yield found("RULE_TIGHTENED", name, text)
    for oneof in new.oneofs:
        same = next((one for one in old.oneofs if _members(one) & _members(oneof)), None)
        rules: dict[str, Any] = {} if same is None else before.of_oneof(same)
        for text in tightened(rules, after.of_oneof(oneof)):
            yield found("RULE_TIGHTENED", f"{name}.{oneof.name}", text)
    for field in new.fields:
        element, rules = f"{name}.{field.name}", after.of_field(field)
        was = old.fields_by_number.get(field.number)
        if was is None:
            rule = refuses_zero(rules, has_presence=field.has_presence)
            if rule:
                yield found(
                    "REQUIRED_FIELD_ADDED", element,
                    f"the new field {field.name} ({field.number}) must be set: {rule} refuses messages without it",
                    "add it without the rule, or with ignore: IGNORE_IF_ZERO_VALUE",
                )  # fmt: skip
            continue
        for text in tightened(before.of_field(was), rules):
            yield found("RULE_TIGHTENED", element, text)
        if users.requests and "OUTPUT_ONLY" in after.behaviors(field) - before.behaviors(was):
            yield found(
                "FIELD_OUTPUT_ONLY", element, "it became OUTPUT_ONLY",
                "add a new OUTPUT_ONLY field, and keep this one",
                f"a value that a request sets is cleared or refused: {users.text()}",
            )  # fmt: skip


def _members(oneof: Any) -> set[int]:
    return {field.number for field in oneof.fields}


def _who(users: Users) -> str:
    who = []
    if users.requests:
        who.append("requests that were accepted get INVALID_ARGUMENT (HTTP 400)")
    if users.events:
        who.append("events that were valid cannot be published, and stored ones become dead letters")
    return f"{', '.join(who)}: {users.text()}"
