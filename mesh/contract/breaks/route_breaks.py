"""Breaking changes of HTTP routes: paths, bodies, variables and the status of success. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.compared_contracts import ComparedContracts
from mesh.contract.model import Contract, Method, Route
from mesh.contract.path_template import ANY, REST

__all__ = ["has_route", "route_breaks"]


def route_breaks(both: ComparedContracts, old: Method, new: Method) -> Iterator[Break]:
    """Yield the breaking changes of the routes of one method."""
    name = old.path[1:]
    for route in old.routes:
        found = next((one for one in new.routes if _covers(one, route)), None)
        if found is None:
            owner = _owner(both.new, route)
            now = ", ".join(map(str, new.routes)) or "none"
            affected = f"HTTP clients that send {route} get 404 or 405"
            if owner is not None:
                affected = f"HTTP clients that send {route} reach {owner.path[1:]} now"
            yield Break(
                new.place, "ROUTE_REMOVED", name, f"the route {route} is gone; its routes are: {now}", affected,
                "keep it as one of additional_bindings of the new route",
            )  # fmt: skip
        elif old.gateway is None:
            yield from _changed(both, old, new, route, found)
    if old.routes and new.routes and old.success_status != new.success_status:
        yield Break(
            new.place, "SUCCESS_STATUS_CHANGED", name,
            f"success_status was {old.success_status} and is {new.success_status} now",
            f"HTTP clients that expect {old.success_status} take a success for a failure", "keep it",
        )  # fmt: skip


def has_route(contract: Contract, route: Route) -> bool:
    """Whether a method of the contract has a route, or one that matches its paths too."""
    return _owner(contract, route) is not None


def _owner(contract: Contract, route: Route) -> Method | None:
    methods = contract.methods.values()
    return next((method for method in methods if any(_covers(one, route) for one in method.routes)), None)


def _covers(new: Route, old: Route) -> bool:
    """Whether a route matches every request that another one matches."""
    if new.verb not in (old.verb, "*") or new.template.verb != old.template.verb:
        return False
    wide, narrow = new.template.segments, old.template.segments
    if wide[-1:] == (REST,):
        wide = wide[:-1]
        if len(narrow) < len(wide):
            return False
        narrow = narrow[: len(wide)]
    return len(wide) == len(narrow) and all(
        one == other or (one == ANY and other != REST) for one, other in zip(wide, narrow, strict=True)
    )


def _changed(both: ComparedContracts, old: Method, new: Method, before: Route, after: Route) -> Iterator[Break]:
    """Yield a break if a route takes the parts of a request for other fields."""
    messages = ((old.input.DESCRIPTOR, new.input.DESCRIPTOR), (old.output.DESCRIPTOR, new.output.DESCRIPTOR))
    changes = []
    if _field(messages[0][0], before.body) != _field(messages[0][1], after.body):
        changes.append(f"body was {before.body!r} and is {after.body!r} now")
    if _field(messages[1][0], before.response_body) != _field(messages[1][1], after.response_body):
        changes.append(f"response_body was {before.response_body!r} and is {after.response_body!r} now")
    was, is_ = (
        {variable.start: _path(message, variable.field) for variable in route.template.variables}
        for message, route in zip(messages[0], (before, after), strict=True)
    )
    if was != is_:
        changes.append(f"the path was {before.template.text} and is {after.template.text} now")
    if changes:
        yield Break(
            both.new_elements.place(new.path[1:]), "ROUTE_CHANGED", old.path[1:], f"{before}: {' and '.join(changes)}",
            f"HTTP clients of {before} send or read another form", "add a route for the new form",
        )  # fmt: skip


def _field(message: Any, name: str) -> str | int:
    """Return the number of a field, which a rename leaves alone; else the name: ``""`` or ``"*"``."""
    field = message.fields_by_name.get(name)
    return name if field is None else int(field.number)


def _path(message: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of a path of fields."""
    numbers = []
    for name in names:
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            break
        numbers.append(field.number)
        message = field.message_type
    return tuple(numbers)
