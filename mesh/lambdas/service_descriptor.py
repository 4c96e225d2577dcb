"""A ``Function`` → a file of the contract: its service, as protoc would have compiled it. Pure.

``Invoke(google.protobuf.Value) returns (google.protobuf.Value)`` with an HTTP rule for each route; a method for its
schedule and for each event that it subscribes to, whose request types the triggers prescribe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, empty_pb2, message_factory, struct_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from mesh.config.lambda_function import PACKAGE, LambdaFunction
from mesh.contract.descriptor_pool import build_pool
from mesh.faults import Fault, Faults

__all__ = ["INVOKE", "TICK", "extend", "on_event"]

INVOKE = "Invoke"
TICK = "meshapi.v1.Tick"
"""What the method of a schedule takes, and no other: an event may have any name."""

_ON_SCHEDULE = "OnSchedule"
_MARGIN = 1.0
"""Seconds that a call may take longer than the function: its time-out is then answered by the function's own host."""
_OPTIONS = "meshapi/v1/annotations.proto"
_ACCESS = {"public": 1, "authenticated": 2, "internal": 3}
_SERVICE, _METHOD = FileDescriptorProto.SERVICE_FIELD_NUMBER, 2


def on_event(event: str) -> str:
    """Return the name of the method of an event: ``OnUserRegistered`` for ``registration.v1.UserRegistered``."""
    return f"On{event.rpartition('.')[2]}"


def extend(files: FileDescriptorSet, functions: Iterable[LambdaFunction]) -> FileDescriptorSet:
    """Return the compiled contract with a file for each function.

    Args:
        files: What protoc made; ``meshapi`` is always part of it.
        functions: The functions of mesh.toml.

    Raises:
        Faults: A function's service is there already, or it subscribes to a message that is not, or
            to two that would be one method.
    """
    functions = list(functions)
    if not functions:
        return files
    made = FileDescriptorSet()
    made.CopyFrom(files)
    known = {file.name for file in made.file}
    for module in (descriptor_pb2, http_pb2, annotations_pb2, struct_pb2, empty_pb2):
        if module.DESCRIPTOR.name not in known:
            module.DESCRIPTOR.CopyToProto(made.file.add())
    pool = build_pool(made)
    faults: list[Fault] = []
    for function in functions:
        try:
            file = _File(function, pool).made()
            pool.Add(file)
            made.file.append(file)
        except Faults as found:
            faults += found.faults
        except TypeError:  # what the pool says of a name that is taken
            text = f"the contract has {function.service} already, by another entry or a .proto file; rename the entry"
            faults.append(Fault(f"[services.{function.name}]", text))
    if faults:
        raise Faults(faults)
    return made


class _File:
    """Makes the file of one function."""

    def __init__(self, function: LambdaFunction, pool: descriptor_pool.DescriptorPool) -> None:
        self._function = function
        self._pool = pool
        found: Any = pool.FindExtensionByName("meshapi.v1.method")
        self._extension = found
        self._options: Any = message_factory.GetMessageClass(found.containing_type)
        self._file = FileDescriptorProto(
            name=function.proto,
            package=PACKAGE,
            syntax="proto3",
            dependency=[
                struct_pb2.DESCRIPTOR.name, empty_pb2.DESCRIPTOR.name, annotations_pb2.DESCRIPTOR.name, _OPTIONS,
            ],
        )  # fmt: skip
        self._service = self._file.service.add(name=function.title)

    def made(self) -> FileDescriptorProto:
        function = self._function
        self._check()
        self._comment(f" The Lambda function {function.module}:{function.handler}.\n")
        self._method(INVOKE, "google.protobuf.Value", "google.protobuf.Value", self._invoke())
        self._comment(" Invokes it: the request is the event, the response what the handler returns.\n", _METHOD, 0)
        if function.schedule:
            options = self._options()
            options.Extensions[self._extension].on.add(schedule=function.schedule)
            self._method(_ON_SCHEDULE, TICK, "google.protobuf.Empty", options)
        for event in function.subscribes:
            self._subscribe(event)
        return self._file

    def _check(self) -> None:
        """Refuse what would be two methods of one name."""
        named = {_ON_SCHEDULE: "the schedule"} if self._function.schedule else {}
        for event in self._function.subscribes:
            name, said = on_event(event), repr(event)
            if name not in named:
                named[name] = said
                continue
            text = f"{said} stands twice; once is enough"
            if named[name] != said:
                text = (
                    f"{named[name]} and {said} would both be {name}; "
                    "give one of them a [services.NAME] of its own, with the same lambda"
                )
            raise Faults([Fault(f"[services.{self._function.name}] subscribes", text)])

    def _subscribe(self, event: str) -> None:
        try:
            message: Any = self._pool.FindMessageTypeByName(event)
        except KeyError:
            text = f"there is no message {event!r} in the contract"
            raise Faults([Fault(f"[services.{self._function.name}] subscribes", text)]) from None
        if message.file.name not in self._file.dependency:
            self._file.dependency.append(message.file.name)
        options = self._options()
        options.Extensions[self._extension].on.add().event.SetInParent()
        self._method(on_event(event), event, "google.protobuf.Empty", options)

    def _method(self, name: str, takes: str, gives: str, options: Any) -> None:
        method = self._service.method.add(name=name, input_type=f".{takes}", output_type=f".{gives}")
        method.options.MergeFromString(options.SerializeToString())

    def _invoke(self) -> Any:
        function, options = self._function, self._options()
        said = options.Extensions[self._extension]
        said.timeout.FromNanoseconds(int((function.timeout + _MARGIN) * 1e9))
        said.access = _ACCESS[function.access]
        said.roles.extend(function.roles)
        said.gateway.events.extend(route.event for route in function.routes)
        said.gateway.base = function.routes[0].base if function.routes else ""
        said.gateway.largest = function.max_message_bytes
        said.gateway.resources.extend(route.resource for route in function.routes)
        rules = list(self._rules())
        if rules:
            rule = rules[0]
            rule.additional_bindings.extend(rules[1:])
            http: Any = self._pool.FindExtensionByName("google.api.http")
            options.Extensions[http].MergeFromString(rule.SerializeToString())
        return options

    def _rules(self) -> Iterator[http_pb2.HttpRule]:
        for route in self._function.routes:
            rule = http_pb2.HttpRule(body="*")
            if route.verb in ("GET", "PUT", "POST", "DELETE", "PATCH"):
                setattr(rule, route.verb.lower(), route.template)
            else:
                rule.custom.kind, rule.custom.path = route.verb, route.template
            yield rule

    def _comment(self, text: str, *path: int) -> None:
        """Say it of the service, or of what ``path`` names in it, where the OpenAPI document finds it."""
        self._file.source_code_info.location.add(path=[_SERVICE, 0, *path], span=[0, 0, 0], leading_comments=text)
