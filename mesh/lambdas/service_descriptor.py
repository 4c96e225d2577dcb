"""Descriptor builder: the .proto file of a Lambda function's service, as protoc would compile it. Pure.

The service has ``Invoke(google.protobuf.Value) returns (google.protobuf.Value)`` with an HTTP rule for each route. It
has a method for the schedule and one for each subscribed event. Their request types follow from the triggers.
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
"""Request type of the schedule's method. No event has this type, so it tells a schedule from an event."""

_ON_SCHEDULE = "OnSchedule"
_TIMEOUT_MARGIN_SECONDS = 1.0
"""Seconds that a call may take beyond the function's timeout, so that the sidecar responds to the timeout itself."""
_OPTIONS = "meshapi/v1/annotations.proto"
_ACCESS = {"public": 1, "authenticated": 2, "internal": 3, "key": 4}
_SERVICE, _METHOD = FileDescriptorProto.SERVICE_FIELD_NUMBER, 2


def on_event(event: str) -> str:
    """Return the name of the method of an event: ``OnUserRegistered`` for ``registration.v1.UserRegistered``."""
    return f"On{event.rpartition('.')[2]}"


def extend(files: FileDescriptorSet, functions: Iterable[LambdaFunction]) -> FileDescriptorSet:
    """Return the compiled contract with a file for each function.

    Args:
        files: Output of protoc. It always contains ``meshapi``.
        functions: The functions of mesh.toml.

    Raises:
        Faults: A function's service exists already, or it subscribes to a message that does not exist, or to two
            messages whose methods would have the same name.
    """
    functions = list(functions)
    if not functions:
        return files
    extended = FileDescriptorSet()
    extended.CopyFrom(files)
    known = {file.name for file in extended.file}
    for module in (descriptor_pb2, http_pb2, annotations_pb2, struct_pb2, empty_pb2):
        if module.DESCRIPTOR.name not in known:
            module.DESCRIPTOR.CopyToProto(extended.file.add())
    pool = build_pool(extended)
    faults: list[Fault] = []
    for function in functions:
        try:
            file = _ServiceFileBuilder(function, pool).build()
            pool.Add(file)
            extended.file.append(file)
        except Faults as found:
            faults += found.faults
        except TypeError:  # the pool's error for a name that is taken
            text = (
                f"the contract has {function.service} already: another service or a .proto file has it; rename this one"
            )
            faults.append(Fault(f"[services.{function.name}]", text))
    if faults:
        raise Faults(faults)
    return extended


class _ServiceFileBuilder:
    """Builds the file of one function."""

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

    def build(self) -> FileDescriptorProto:
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
        """Refuse two methods with the same name."""
        named = {_ON_SCHEDULE: "the schedule"} if self._function.schedule else {}
        for event in self._function.subscribes:
            name, label = on_event(event), repr(event)
            if name not in named:
                named[name] = label
                continue
            text = f"{label} stands twice; once is enough"
            if named[name] != label:
                text = (
                    f"{named[name]} and {label} would both be {name}; "
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

    def _method(self, name: str, input_type: str, output_type: str, options: Any) -> None:
        method = self._service.method.add(name=name, input_type=f".{input_type}", output_type=f".{output_type}")
        method.options.MergeFromString(options.SerializeToString())

    def _invoke(self) -> Any:
        function, options = self._function, self._options()
        method_options = options.Extensions[self._extension]
        method_options.timeout.FromNanoseconds(int((function.timeout + _TIMEOUT_MARGIN_SECONDS) * 1e9))
        method_options.access = _ACCESS[function.access]
        method_options.roles.extend(function.roles)
        method_options.scopes.extend(function.scopes)
        method_options.gateway.events.extend(route.event for route in function.routes)
        method_options.gateway.base = function.routes[0].base if function.routes else ""
        method_options.gateway.largest = function.max_message_bytes
        method_options.gateway.resources.extend(route.resource for route in function.routes)
        method_options.gateway.openapi = function.operations
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
        """Set the comment of the service, or of its element at ``path``, for the OpenAPI document."""
        self._file.source_code_info.location.add(path=[_SERVICE, 0, *path], span=[0, 0, 0], leading_comments=text)
