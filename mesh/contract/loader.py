"""Contract loader: builds the ``Contract`` from compiled descriptors, and makes all its checks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
)

from mesh.contract import cron, graph, path_template, protoc
from mesh.contract.breaks.accepted_breaks import accepted_faults
from mesh.contract.descriptor_pool import build_pool
from mesh.contract.model import (
    Access,
    ChangeTrigger,
    Contract,
    EventTrigger,
    EventType,
    GatewayOptions,
    GrpcService,
    Hedge,
    Method,
    Route,
    ScheduleTrigger,
    Trigger,
)
from mesh.contract.source_locations import SourceLocations
from mesh.faults import Fault, Faults

__all__ = ["read"]

DEFAULT_HEDGED_ATTEMPTS = 2
MAX_HEDGED_ATTEMPTS = 5
"""Attempts of a hedged call: by default, which is also the least, and at most (gRPC proposal A6)."""

_SCALAR_MESSAGES = frozenset(
    f"google.protobuf.{name}"
    for name in (
        "Timestamp", "Duration", "FieldMask", "StringValue", "BytesValue", "BoolValue", "Int32Value", "Int64Value",
        "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue",
    )
)  # fmt: skip
"""Messages that proto3 JSON writes as one scalar, so a path variable can hold them."""

_SCOPE = re.compile(r"[!#-\[\]-~]+")
"""Scope of an API key: a scope-token of RFC 6749, section 3.3."""
_HTTP_METHOD = re.compile(r"(?:[A-Z][A-Z0-9!#$%&'+\-.^_`|~]*|\*)\Z")
"""HTTP method (RFC 9110, 9.1) of a ``custom`` pattern."""

_SERVICE, _METHOD, _MESSAGE = 6, 2, 4
"""Field numbers in FileDescriptorProto and ServiceDescriptorProto, for source-info paths."""


def read(files: FileDescriptorSet, served: Collection[str] | None = None, *, checked: bool = True) -> Contract:
    """Return the checked contract.

    Args:
        files: All files with their imports, in dependency order, with source info, as protoc writes them.
        served: Full names of the services that mesh.toml serves; None: those of the whole contract. A file below
            ``google/`` that another file imports belongs to the contract only if one of its services is served.
        checked: Whether faults are raised. A contract that ran before is read without checks, because an earlier
            release may have accepted it.

    Raises:
        Faults: All faults of the contract.
    """
    return _ContractBuilder(files, served).contract(checked=checked)


def read_valid(
    files: FileDescriptorSet, served: Collection[str], *, partial: bool
) -> tuple[Contract | None, list[Fault]]:
    """Return the contract without what is wrong, and its faults. The contract is None if its files are refused.

    Args:
        files: As for ``read``.
        served: As for ``read``.
        partial: Whether other files of the contract were refused. Names that nothing here has are no faults then.
    """
    try:
        builder = _ContractBuilder(files, served, partial=partial)
    except Faults as found:
        return None, list(found.faults)
    return builder.contract(checked=False), builder.faults


class _ContractBuilder:
    """Builder of one contract. Collects the faults of all files."""

    def __init__(self, files: FileDescriptorSet, served: Collection[str] | None, *, partial: bool = False) -> None:
        self.files = files
        self.partial = partial
        self.served = served
        self.imported = {name for file in files.file for name in file.dependency}
        self.faults: list[Fault] = []
        self.pool = build_pool(files)
        self.services: dict[str, GrpcService] = {}
        self.events: dict[str, EventType] = {}

    def contract(self, *, checked: bool) -> Contract:
        own = [file for file in self.files.file if self._is_own(file)]
        for file in own:
            locations = SourceLocations(file)
            for index, message in enumerate(file.message_type):
                self._event(message, locations.at(_MESSAGE, index), f"{file.package}.{message.name}".lstrip("."))
        for file in own:
            self._services(file, SourceLocations(file))
        if not self.partial:
            self._check_names()
        self._check_cycle()
        self._check_routes()
        self.faults += accepted_faults(own, self.pool)
        if self.faults and checked:
            raise Faults(self.faults)
        return Contract(self.services, self.events, self.files, self.pool)

    def _is_own(self, file: FileDescriptorProto) -> bool:
        """Whether a file is the contract's own, and not only an import.

        Below ``google/`` two files of an import root of the user are imports: a copy of an installed one, and one whose
        services nobody serves, such as ``google/longrunning/operations.proto``, which is copied for its messages.
        """
        if not file.name.startswith("google/"):
            return not file.name.startswith("meshapi/")
        names = {f"{file.package}.{service.name}".lstrip(".") for service in file.service}
        if not names.isdisjoint(self.served or ()):
            return True
        only_imported = bool(names) and self.served is not None and file.name in self.imported
        return not only_imported and protoc.builtin_file(file.name) is None

    def fault(self, place: str, text: str) -> None:
        self.faults.append(Fault(place, text))

    # -- events --

    def _event(self, message: DescriptorProto, place: str, name: str) -> None:
        for nested in message.nested_type:
            self._event(nested, place, f"{name}.{nested.name}")
        options = self._options(message.options, "meshapi.v1.event")
        if options is None:
            return
        descriptor = self.pool.FindMessageTypeByName(name)
        key = descriptor.fields_by_name.get(options.key)
        if options.key and key is None:
            self.fault(place, f"event {name}: key {options.key!r} is not one of its fields ({_names(descriptor)})")
        elif key is not None and (key.is_repeated or key.message_type is not None):
            self.fault(place, f"event {name}: key {options.key!r} must be a single scalar field")
        self.events[name] = EventType(name, options.key, message_factory.GetMessageClass(descriptor), place)

    # -- services --

    def _services(self, file: FileDescriptorProto, locations: SourceLocations) -> None:
        for index, service in enumerate(file.service):
            name = f"{file.package}.{service.name}".lstrip(".")
            options = self._options(service.options, "meshapi.v1.service")
            methods = {
                method.name: self._method(
                    name,
                    method,
                    locations.at(_SERVICE, index, _METHOD, at),
                    locations.comment(_SERVICE, index, _METHOD, at),
                    refuse_output_only=bool(options and options.refuse_output_only),
                )
                for at, method in enumerate(service.method)
            }
            self.services[name] = GrpcService(
                name=name,
                methods=methods,
                calls=tuple(options.calls) if options else (),
                publishes=tuple(options.publishes) if options else (),
                place=locations.at(_SERVICE, index),
                comment=locations.comment(_SERVICE, index),
            )

    def _method(
        self, service: str, proto: MethodDescriptorProto, place: str, comment: str, *, refuse_output_only: bool
    ) -> Method:
        options = self._options(proto.options, "meshapi.v1.method")
        title = f"{service}.{proto.name}"
        input_ = self.pool.FindMessageTypeByName(proto.input_type.lstrip("."))
        output = self.pool.FindMessageTypeByName(proto.output_type.lstrip("."))
        rule = _http(proto.options)
        gateway = _gateway(options)
        if rule is None:
            routes: tuple[Route, ...] = ()
        elif gateway is not None:
            routes = tuple(_gateway_routes(rule))
        else:
            routes = tuple(self._routes(title, rule, input_, output, place))
        triggers = tuple(self._triggers(title, options.on, proto, input_, place)) if options else ()
        timeout = None
        if options and options.HasField("timeout"):
            timeout = options.timeout.ToNanoseconds() / 1e9
            if timeout <= 0:
                self.fault(
                    place, f"{title}: timeout must be positive, not {timeout:g} s; for no limit say no_time_limit: true"
                )
            if options.no_time_limit:
                self.fault(place, f"{title}: timeout and no_time_limit exclude each other; keep one of them")
        status = self._success_status(title, options, output, place, routed=bool(routes))
        access = self._access(title, options, place, routed=bool(routes), triggered=bool(triggers))
        return Method(
            name=proto.name,
            service=service,
            path=f"/{service}/{proto.name}",
            input=message_factory.GetMessageClass(input_),
            output=message_factory.GetMessageClass(output),
            client_streaming=proto.client_streaming,
            server_streaming=proto.server_streaming,
            access=access,
            roles=frozenset(options.roles) if options else frozenset(),
            scopes=frozenset(options.scopes) if options else frozenset(),
            timeout=timeout,
            no_time_limit=bool(options and options.no_time_limit),
            idempotent=proto.options.idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN,
            safe=proto.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS,
            success_status=status,
            routes=routes,
            triggers=triggers,
            triggers_only=access is Access.INTERNAL and not (options and options.access),
            place=place,
            comment=comment,
            gateway=gateway,
            hedge=self._hedge(title, options, proto, place),
            refuse_output_only=refuse_output_only,
        )

    def _hedge(self, title: str, options: Any, proto: MethodDescriptorProto, place: str) -> Hedge | None:
        if not options or not options.HasField("hedge"):
            return None
        delay = options.hedge.delay.ToNanoseconds() / 1e9
        attempts = options.hedge.max_attempts or DEFAULT_HEDGED_ATTEMPTS
        if proto.options.idempotency_level == MethodOptions.IDEMPOTENCY_UNKNOWN:
            self.fault(
                place,
                f"{title}: hedge sends a call more than once; declare idempotency_level = NO_SIDE_EFFECTS or "
                "IDEMPOTENT, or remove hedge",
            )
        if proto.client_streaming or proto.server_streaming:
            self.fault(place, f"{title}: only a unary method can have hedge")
        if delay <= 0:
            self.fault(place, f"{title}: hedge.delay must be positive, not {delay:g} s, as in {{ nanos: 50000000 }}")
        if not DEFAULT_HEDGED_ATTEMPTS <= attempts <= MAX_HEDGED_ATTEMPTS:
            self.fault(
                place,
                f"{title}: hedge.max_attempts must be from {DEFAULT_HEDGED_ATTEMPTS} to {MAX_HEDGED_ATTEMPTS}, not "
                f"{attempts}",
            )
        return Hedge(delay, attempts)

    def _access(self, title: str, options: Any, place: str, *, routed: bool, triggered: bool) -> Access:
        declared = options.access if options else 0
        access = {1: Access.PUBLIC, 2: Access.AUTHENTICATED, 3: Access.INTERNAL, 4: Access.KEY}.get(
            declared, Access.INTERNAL if triggered and not routed else Access.AUTHENTICATED
        )
        if access is Access.INTERNAL and routed:
            self.fault(
                place, f"{title}: an INTERNAL method is never reached through the edge; remove its google.api.http"
            )
        if options and options.roles and access is not Access.AUTHENTICATED:
            self.fault(place, f"{title}: roles narrow AUTHENTICATED; with {access.name} they have no effect")
        if options and options.scopes and access is not Access.KEY:
            self.fault(place, f"{title}: scopes are those of API keys; with {access.name} they have no effect")
        if options and not all(_SCOPE.fullmatch(scope) for scope in options.scopes):
            self.fault(place, f'{title}: a scope is a word without spaces, such as "orders:read"')
        return access

    def _success_status(self, title: str, options: Any, output: Descriptor, place: str, *, routed: bool) -> int:
        status = int(options.success_status) if options else 0
        if not status:
            return 200
        if not 200 <= status <= 299:  # noqa: PLR2004 - RFC 9110, 15.3
            self.fault(place, f"{title}: success_status must be from 200 to 299, not {status}")
        elif not routed:
            self.fault(place, f"{title}: success_status is an HTTP status, and the method has no google.api.http")
        elif status in (204, 205) and output.full_name != "google.protobuf.Empty":
            self.fault(
                place,
                f"{title}: success_status {status} has no body; return google.protobuf.Empty, not {output.full_name}",
            )
        return status

    # -- triggers --

    def _triggers(
        self, title: str, rules: Sequence[Any], proto: MethodDescriptorProto, input_: Descriptor, place: str
    ) -> Iterator[Trigger]:
        if rules and (proto.client_streaming or proto.server_streaming):
            self.fault(place, f"{title}: only a unary method can have a trigger")
        for rule in rules:
            match rule.WhichOneof("kind"):
                case "event":
                    if input_.full_name not in self.events:
                        self.fault(
                            place,
                            f"{title}: on.event needs an event as its request type, and {input_.full_name} is none; "
                            "mark it with option (meshapi.v1.event)",
                        )
                    yield EventTrigger(input_.full_name)
                case "schedule":
                    self._expect(title, "on.schedule", "meshapi.v1.Tick", input_, place)
                    try:
                        cron.check(rule.schedule)
                    except cron.ScheduleError as error:
                        self.fault(place, f"{title}: on.schedule {error}")
                    yield ScheduleTrigger(rule.schedule, rule.skip_missed)
                case "change":
                    self._expect(title, "on.change", "meshapi.v1.Change", input_, place)
                    if not rule.change.service or not rule.change.table:
                        self.fault(place, f"{title}: on.change needs both a service and a table")
                    yield ChangeTrigger(rule.change.service, rule.change.table)
                case _:
                    self.fault(place, f"{title}: an empty trigger; say event, schedule or change")

    def _expect(self, title: str, what: str, wanted: str, input_: Descriptor, place: str) -> None:
        if input_.full_name != wanted:
            self.fault(place, f"{title}: {what} needs {wanted} as its request type, not {input_.full_name}")

    # -- routes --

    def _routes(self, title: str, rule: Any, input_: Descriptor, output: Descriptor, place: str) -> Iterator[Route]:
        for one in (rule, *rule.additional_bindings):
            verb = one.WhichOneof("pattern")
            if verb is None:
                self.fault(place, f"{title}: an HTTP rule without a path; say get, put, post, delete, patch or custom")
                continue
            path = one.custom.path if verb == "custom" else getattr(one, verb)
            verb = one.custom.kind if verb == "custom" else verb.upper()
            if not _HTTP_METHOD.match(verb):
                self.fault(place, f"{title}: custom kind must be an HTTP method in upper case, or '*', not {verb!r}")
            if one is not rule and one.additional_bindings:
                self.fault(
                    place,
                    f"{title}: additional_bindings of an additional binding have no effect; list them side by side",
                )
            try:
                parsed = path_template.parse(path)
            except path_template.TemplateError as error:
                self.fault(place, f"{title}: path template {error}")
                continue
            for variable in parsed.variables:
                self._check_variable(title, variable, input_, place)
                if variable.field == (one.body,):
                    self.fault(
                        place, f"{title}: {one.body!r} is in the path and is the body; it can come from one place"
                    )
            self._check_oneofs(title, parsed, input_, place)
            self._check_body(title, "body", one.body, input_, place)
            self._check_body(title, "response_body", one.response_body, output, place)
            yield Route(verb, parsed, one.body, one.response_body)

    def _check_variable(self, title: str, variable: path_template.Variable, message: Descriptor, place: str) -> None:
        path = ".".join(variable.field)
        field: FieldDescriptor | None = None
        at: Descriptor | None = message
        for part in variable.field:
            field = at.fields_by_name.get(part) if at is not None else None
            if field is None:
                known = _names(at) if at is not None else "it is no message"
                self.fault(place, f"{title}: the path template names {path!r}, and {part!r} is not a field ({known})")
                return
            if field.is_repeated:
                self.fault(
                    place,
                    f"{title}: the path template names {path!r}, and {part!r} is repeated; a path holds one value",
                )
                return
            at = field.message_type
        if at is not None and at.full_name not in _SCALAR_MESSAGES:
            self.fault(place, f"{title}: the path template names {path!r}, which is a message; name one of its fields")

    def _check_oneofs(self, title: str, parsed: path_template.Template, message: Descriptor, place: str) -> None:
        """Check that no two variables set members of one oneof. The second one would clear the first."""
        taken: dict[tuple[tuple[str, ...], str], str] = {}
        for variable in parsed.variables:
            at: Descriptor | None = message
            for depth, part in enumerate(variable.field):
                field = at.fields_by_name.get(part) if at is not None else None
                if field is None:
                    break
                oneof = field.containing_oneof
                other = taken.setdefault((variable.field[:depth], oneof.name), part) if oneof is not None else part
                if other != part:
                    self.fault(
                        place, f"{title}: the path template names {part!r} and {other!r}, of which only one can be set"
                    )
                at = field.message_type

    def _check_body(self, title: str, what: str, name: str, message: Descriptor, place: str) -> None:
        allowed = ("", "*") if what == "body" else ("",)
        if name not in allowed and name not in message.fields_by_name:
            self.fault(place, f"{title}: {what} {name!r} is not a field of {message.full_name} ({_names(message)})")

    # -- the contract as a whole --

    def _check_names(self) -> None:
        for service in self.services.values():
            for name in service.calls:
                if name not in self.services:
                    why = "no service of mesh.toml serves" if self._declares(name) else "is no service of the contract"
                    self.fault(service.place, f"{service.name}: calls {name!r}, which {why}")
            for name in service.publishes:
                if name not in self.events:
                    self.fault(service.place, f"{service.name}: publishes {name!r}, which is no event of the contract")

    def _declares(self, service: str) -> bool:
        try:
            self.pool.FindServiceByName(service)
        except KeyError:
            return False
        return True

    def _check_cycle(self) -> None:
        edges = {service.name: service.calls for service in self.services.values()}
        members = graph.cycle(edges)
        if members:
            place = self.services[members[0]].place
            self.fault(place, f"the calls form a cycle: {' → '.join(members)}; replace one of them by an event")

    def _check_routes(self) -> None:
        taken: dict[Any, tuple[Method, Route]] = {}
        for service in self.services.values():
            for method in service.methods.values():
                for route in method.routes:
                    key = (route.verb, route.template.shape)
                    other = taken.setdefault(key, (method, route))
                    if other[1] is not route:
                        self.fault(
                            method.place,
                            f"{service.name}.{method.name}: {route} is already the route of "
                            f"{other[0].service}.{other[0].name} ({other[1]})",
                        )

    def _options(self, options: Any, extension: str) -> Any:
        """Return the value of an extension, read with the classes of the contract's pool, or None if it is not set."""
        try:
            found: Any = self.pool.FindExtensionByName(extension)
        except KeyError:
            return None
        cls: Any = message_factory.GetMessageClass(found.containing_type)
        own = cls.FromString(options.SerializeToString())
        return own.Extensions[found] if own.HasExtension(found) else None


def _http(options: MethodOptions) -> Any:
    """Return the HTTP rule or None, read with the installed definition, because a vendored copy may be older."""
    own = MethodOptions.FromString(options.SerializeToString())
    return own.Extensions[annotations_pb2.http] if own.HasExtension(annotations_pb2.http) else None


def _gateway(options: Any) -> GatewayOptions | None:
    if not options or not options.HasField("gateway"):
        return None
    declared = options.gateway
    resources = tuple(declared.resources)
    return GatewayOptions(tuple(declared.events), declared.base, resources, declared.largest, declared.openapi)


def _gateway_routes(rule: Any) -> Iterator[Route]:
    """Yield the routes of a Lambda function. The mesh generated the rule, and its variables name no fields."""
    for one in (rule, *rule.additional_bindings):
        verb = one.WhichOneof("pattern")
        path = one.custom.path if verb == "custom" else getattr(one, verb)
        parsed = path_template.parse_slashed(path)
        yield Route(one.custom.kind if verb == "custom" else verb.upper(), parsed, one.body)


def _names(message: Descriptor) -> str:
    return "fields: " + (", ".join(field.name for field in message.fields) or "none")
