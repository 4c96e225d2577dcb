"""Break rules: names of the breaking changes that the comparison finds, and the value that describes one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["RULES", "Break"]

RULES: Mapping[str, str] = {
    # -- gRPC --
    "SERVICE_REMOVED": "a gRPC service is gone",
    "METHOD_REMOVED": "a method is gone",
    "STREAMING_CHANGED": "a method's request or response became a stream, or no longer is one",
    "REQUEST_TYPE_CHANGED": "a method has another request message",
    "RESPONSE_TYPE_CHANGED": "a method has another response message",
    # -- HTTP --
    "ROUTE_REMOVED": "an HTTP route is gone, or has moved",
    "ROUTE_CHANGED": "a route has another body, response body or path variable",
    "SUCCESS_STATUS_CHANGED": "another HTTP status for success",
    # -- callers --
    "ACCESS_NARROWED": "`access` excludes callers",
    "ROLES_NARROWED": "`roles` excludes users",
    "SCOPES_ADDED": "`scopes` excludes API keys",
    "CALL_REMOVED": "`calls` of a service lost a service",
    # -- calls --
    "TIMEOUT_CUT": "the time limit is shorter, or new",
    "RETRY_SAFETY_REMOVED": "`idempotency_level` promises less",
    "REQUEST_LIMIT_CUT": "a Lambda function accepts smaller requests only",
    "LAMBDA_EVENT_CHANGED": "a Lambda function gets another event for a route",
    # -- events and triggers --
    "EVENT_REMOVED": "a message is no longer an event, or is gone",
    "EVENT_KEY_CHANGED": "an event has another key, or none",
    "PUBLISHER_REMOVED": "`publishes` of a service lost an event",
    "SUBSCRIPTION_REMOVED": "an event or a table's changes no longer call a method",
    "SCHEDULE_REMOVED": "a schedule no longer calls a method",
    "TICKS_SKIPPED": "`skip_missed` is new: a missed tick is not made up for",
    "CAPTURED_TABLE_DROPPED": "a migration drops or renames a table that a change trigger names",
    "CAPTURED_COLUMN_DROPPED": "a migration drops or renames a column of such a table",
    # -- messages --
    "FIELD_REMOVED": "a field is gone, and number and name are not both reserved",
    "REQUEST_FIELD_REMOVED": "a field that clients may send as JSON is gone, though reserved",
    "FIELD_RENAMED": "a field has another name, or another JSON name",
    "FIELD_TYPE_CHANGED": "a field has another type",
    "FIELD_CARDINALITY_CHANGED": "a field became repeated, a map or a single value",
    "FIELD_ONEOF_CHANGED": "a field shares a oneof with other fields than before",
    "FIELD_DEFAULT_CHANGED": "a field has another default value",
    "REQUIRED_LABEL_CHANGED": "a `required` field of proto2 is new, gone, or no longer required",
    "ENUM_VALUE_REMOVED": "a value of an enum is gone, and number and name are not both reserved",
    "REQUEST_ENUM_VALUE_REMOVED": "a value that clients may send as JSON is gone, though reserved",
    "ENUM_VALUE_RENAMED": "a value of an enum has another name",
    "RESERVED_REMOVED": "a number or name is no longer reserved",
    # -- rules of requests and events --
    "RULE_TIGHTENED": "a rule refuses more than before",
    "REQUIRED_FIELD_ADDED": "a new field must be set",
    "FIELD_OUTPUT_ONLY": "a field of a request became OUTPUT_ONLY",
    "OUTPUT_ONLY_REFUSED": "`refuse_output_only` of a service is new",
    # -- events that are stored (--against-running) --
    "STORED_UNREADABLE": "stored events cannot be decoded with the new contract, or decode to other values",
    "STORED_INVALID": "stored events do not satisfy the rules of the new contract",
    "STORED_UNDELIVERABLE": "the new contract lacks the type of stored events, or the trigger of dead letters",
}
"""Rule → the change that it names. ``accepted_breaks`` of a contract and the output of the command use these names."""


@dataclass(frozen=True, slots=True, order=True)
class Break:
    """One breaking change.

    Attributes:
        place: File and line in the new contract. A removed element has the place of the element around it.
        rule: Name of the rule, a key of ``RULES``.
        element: What was changed: ``shop.v1.Shop/GetOrder``, ``shop.v1.Order.total``.
        change: The change, old and new.
        affected: Who or what is broken by it.
        compatible: A change that would break nobody.
        accepted: The reason for which the contract accepts it; ``""``: it does not.
    """

    place: str
    rule: str
    element: str
    change: str
    affected: str
    compatible: str
    accepted: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.rule} {self.element}: {self.change}; {self.affected}"
        return f"{text}; accepted: {self.accepted}" if self.accepted else f"{text}; compatible: {self.compatible}"
