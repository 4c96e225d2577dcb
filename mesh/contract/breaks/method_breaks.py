"""Breaking changes of services and methods: access, time limits, retry safety and types. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import MethodOptions

from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.compared_contracts import ComparedContracts
from mesh.contract.breaks.route_breaks import has_route, route_breaks
from mesh.contract.breaks.trigger_breaks import trigger_breaks
from mesh.contract.model import Access, GatewayOptions, GrpcService, Method

__all__ = ["service_breaks"]

_CALLERS = {
    Access.PUBLIC: ("callers without a token", "users", "API keys", "services of the mesh"),
    Access.AUTHENTICATED: ("users", "services of the mesh"),
    Access.KEY: ("API keys", "services of the mesh"),
    Access.INTERNAL: ("services of the mesh",),
}
_LEVELS: Mapping[int, str] = {
    MethodOptions.IDEMPOTENCY_UNKNOWN: "no idempotency_level",
    MethodOptions.IDEMPOTENT: "IDEMPOTENT",
    MethodOptions.NO_SIDE_EFFECTS: "NO_SIDE_EFFECTS",
}


def service_breaks(both: ComparedContracts) -> Iterator[Break]:
    """Yield the breaking changes of all services, with their methods, routes and triggers."""
    for name, old in both.old.services.items():
        new = both.new.services.get(name)
        if new is None:
            place = both.new_elements.place(file=both.old_elements.file_of(name))
            yield Break(
                place, "SERVICE_REMOVED", name, f"the service is gone, with {_count(len(old.methods), 'method')}",
                f"its clients get UNIMPLEMENTED{_lost(both, *old.methods.values())}",
                "keep it until nothing calls it; serve the new service beside it",
            )  # fmt: skip
            continue
        yield from _service_options(both, old, new)
        for short, method in old.methods.items():
            after = new.methods.get(short)
            if after is None:
                yield Break(
                    new.place, "METHOD_REMOVED", method.path[1:], "the method is gone",
                    f"its clients get UNIMPLEMENTED{_lost(both, method)}",
                    "keep it until nothing calls it, with option deprecated = true",
                )  # fmt: skip
            else:
                yield from _Methods(both, method, after).breaks()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _lost(both: ComparedContracts, *methods: Method) -> str:
    """Return what is lost with methods besides themselves: routes, subscriptions and schedules."""
    routes = [str(route) for method in methods for route in method.routes if not has_route(both.new, route)]
    triggers = [str(trigger) for method in methods for trigger in method.triggers]
    lost = f"; HTTP clients of {', '.join(routes)} get 404" if routes else ""
    return lost + (f"; nothing is called any more for: {', '.join(triggers)}" if triggers else "")


def _service_options(both: ComparedContracts, old: GrpcService, new: GrpcService) -> Iterator[Break]:
    for called in old.calls:
        if called not in new.calls and called in both.new.services:
            yield Break(
                new.place, "CALL_REMOVED", old.name, f"calls no longer has {called}",
                f"{called} refuses the calls of {old.name}, also those of replicas that run the old code",
                f'keep calls: "{called}" until no replica with the old code runs',
            )  # fmt: skip
    for event in old.publishes:
        if event not in new.publishes and event in both.new.events:
            yield Break(
                new.place, "PUBLISHER_REMOVED", old.name, f"publishes no longer has {event}",
                f"subscribers of {event} get none from {old.name}, and those that wait to be delivered are refused",
                f'keep publishes: "{event}" until all its events have been delivered',
            )  # fmt: skip

    if _refuses_outputs(new) and not _refuses_outputs(old):
        yield Break(
            new.place, "OUTPUT_ONLY_REFUSED", old.name, "refuse_output_only is new",
            "requests that set an OUTPUT_ONLY field get INVALID_ARGUMENT (HTTP 400); it was cleared before",
            "leave it out, or add a new service",
        )  # fmt: skip


def _refuses_outputs(service: GrpcService) -> bool:
    return any(method.refuse_output_only for method in service.methods.values())


class _Methods:
    """Comparison of one method."""

    def __init__(self, both: ComparedContracts, old: Method, new: Method) -> None:
        self.both = both
        self.old, self.new = old, new
        self.name = old.path[1:]

    def breaks(self) -> Iterator[Break]:
        yield from self._types()
        yield from self._callers()
        yield from self._time_limit()
        yield from self._retry_safety()
        yield from route_breaks(self.both, self.old, self.new)
        yield from trigger_breaks(self.both, self.old, self.new)
        yield from self._lambda_events()

    def _break(self, rule: str, change: str, affected: str, compatible: str) -> Break:
        return Break(self.new.place, rule, self.name, change, affected, compatible)

    def _types(self) -> Iterator[Break]:
        old, new = self.old, self.new
        streams = (
            ("request", old.client_streaming, new.client_streaming),
            ("response", old.server_streaming, new.server_streaming),
        )
        for side, before, after in streams:
            if before != after:
                kinds = ("one message", "a stream")
                yield self._break(
                    "STREAMING_CHANGED", f"its {side} was {kinds[before]} and is {kinds[after]} now",
                    "every client of the method fails, over gRPC and HTTP", "add a new method",
                )  # fmt: skip
        for rule, side, was, is_ in (
            ("REQUEST_TYPE_CHANGED", "request", old.input, new.input),
            ("RESPONSE_TYPE_CHANGED", "response", old.output, new.output),
        ):
            if was.DESCRIPTOR.full_name != is_.DESCRIPTOR.full_name:
                yield self._break(
                    rule, f"its {side} was {was.DESCRIPTOR.full_name} and is {is_.DESCRIPTOR.full_name} now",
                    "clients of the old contract send or read another message", "add a new method",
                )  # fmt: skip

    def _callers(self) -> Iterator[Break]:
        old, new = self.old, self.new
        before = () if old.triggers_only else _CALLERS[old.access]
        after = () if new.triggers_only else _CALLERS[new.access]
        excluded = [one for one in before if one not in after]
        if excluded:
            title = "its triggers only" if new.triggers_only else new.access.name
            yield self._break(
                "ACCESS_NARROWED", f"access was {old.access.name} and is {title} now",
                f"refused are {', '.join(excluded)}", f"keep access: {old.access.name}, or add a new method",
            )  # fmt: skip
        elif old.access is new.access is Access.AUTHENTICATED and new.roles and not new.roles >= (old.roles or {""}):
            lost = sorted(old.roles - new.roles)
            who = f"users with {' or '.join(lost)} only" if lost else f"users without {' or '.join(sorted(new.roles))}"
            yield self._break(
                "ROLES_NARROWED", f"roles were {_set(old.roles)} and are {_set(new.roles)} now",
                f"refused with 403 are {who}", "only add roles, or give the users a role first",
            )  # fmt: skip
        elif old.access is new.access is Access.KEY and new.scopes - old.scopes:
            added = ", ".join(sorted(new.scopes - old.scopes))
            yield self._break(
                "SCOPES_ADDED", f"an API key needs the scope {added} too",
                f"refused with 403 are API keys without {added}",
                "make the keys with the new scope first (mesh apikeys create), or add a new method",
            )  # fmt: skip

    def _time_limit(self) -> Iterator[Break]:
        old, new = self.old, self.new
        default = self.both.default_timeout if old.routes and not old.client_streaming | old.server_streaming else None
        before, after = old.timeout, new.timeout
        if new.no_time_limit or (after is not None and before is not None and after >= before):
            return
        if after is None and not old.no_time_limit and (before is None or default is None or default >= before):
            return
        was = "no time limit" if old.no_time_limit else "no timeout" if before is None else f"a timeout of {before:g} s"
        is_ = f"a timeout of {after:g} s" if after is not None else "none, so the default of the deployment"
        limit = f"{after:g} s" if after is not None else "the default" if default is None else f"{default:g} s"
        yield self._break(
            "TIMEOUT_CUT", f"it had {was} and has {is_} now",
            f"calls that take longer than {limit} end with DEADLINE_EXCEEDED (HTTP 504)",
            "keep the limit or raise it; a caller can set a shorter deadline of its own",
        )  # fmt: skip

    def _retry_safety(self) -> Iterator[Break]:
        old, new = (_level(contract.pool, self.old) for contract in (self.both.old, self.both.new))
        if old in (MethodOptions.IDEMPOTENCY_UNKNOWN, new) or new == MethodOptions.NO_SIDE_EFFECTS:
            return
        lost = "calls that fail are not retried, and may be executed twice by clients with the old contract"
        if new == MethodOptions.IDEMPOTENT:
            lost = "clients that call it with GET (Connect) are refused, and caches may still have old responses"
        yield self._break(
            "RETRY_SAFETY_REMOVED", f"it was {_LEVELS[old]} and has {_LEVELS[new]} now", lost,
            f"keep idempotency_level = {_LEVELS[old]}, or add a new method",
        )  # fmt: skip

    def _lambda_events(self) -> Iterator[Break]:
        old, new = self.old.gateway, self.new.gateway
        if old is None or new is None:
            return
        if new.max_message_bytes and (not old.max_message_bytes or new.max_message_bytes < old.max_message_bytes):
            was = f"{old.max_message_bytes} bytes" if old.max_message_bytes else "unknown"
            yield self._break(
                "REQUEST_LIMIT_CUT", f"the largest request was {was} and is {new.max_message_bytes} bytes now",
                "clients with a larger request get 413", "keep max_message",
            )  # fmt: skip
        after = _events(self.new, new)
        for route, before in _events(self.old, old).items():
            now = after.get(route, before)
            if now != before:
                yield self._break(
                    "LAMBDA_EVENT_CHANGED", f"the event of {route} was {before} and is {now} now",
                    "a handler that reads the old form of the event fails", "change the handler with it",
                )  # fmt: skip


def _events(method: Method, gateway: GatewayOptions) -> dict[str, str]:
    """Return route → format and resource of its event."""
    events = zip(method.routes, gateway.events, gateway.resources, strict=True)
    return {str(route): f"{event} at {gateway.base}{resource}" for route, event, resource in events}


def _set(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "not restricted"


def _level(pool: Any, method: Method) -> int:
    descriptor = pool.FindServiceByName(method.service).methods_by_name[method.name]
    return int(descriptor.GetOptions().idempotency_level)
