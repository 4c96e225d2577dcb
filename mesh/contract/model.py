"""Contract model: services, methods, routes, triggers and events as frozen values.

``mesh.contract.loader`` builds them from compiled descriptors and checks them. Every instance is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from google.protobuf import descriptor_pool, message_factory

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message import Message

    from mesh.contract.path_template import Template

__all__ = [
    "Access",
    "ChangeTrigger",
    "Contract",
    "EventTrigger",
    "EventType",
    "GatewayOptions",
    "GrpcService",
    "Hedge",
    "Method",
    "Route",
    "ScheduleTrigger",
    "Trigger",
    "generated_class",
]


class Access(Enum):
    """Access level of a method (``meshapi.v1.Access``, with the default resolved)."""

    PUBLIC = "public"
    """Every caller."""
    AUTHENTICATED = "authenticated"
    """A verified user, or a service of the mesh that declares the call."""
    KEY = "key"
    """An API key with all scopes of the method, or a service of the mesh that declares the call."""
    INTERNAL = "internal"
    """Services of the mesh that declare the call, and triggers. The edge never routes to the method."""


@dataclass(frozen=True, slots=True)
class Route:
    """HTTP route of a method. Each of its ``additional_bindings`` is a route of its own.

    Attributes:
        verb: HTTP method in upper case, or ``"*"`` for any.
        template: The path template.
        body: Name of the request field that the HTTP body holds, ``"*"`` for the whole request, ``""`` for no body.
        response_body: Name of the response field that becomes the HTTP body, or ``""`` for the whole response.
    """

    verb: str
    template: Template
    body: str = ""
    response_body: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.template.text}"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """API Gateway emulation of a Lambda function's routes (``meshapi.v1.Gateway``).

    Attributes:
        events: Event format of each route, in the order of the routes: ``"rest"``, ``"http-1.0"``, ``"http-2.0"``,
            ``"url"`` or ``"body"`` (``mesh.config.api_document``).
        base: Common prefix of all paths.
        resources: API Gateway's path of each route, in the order of the routes.
        max_message_bytes: Size limit of a request message; 0: not declared.
        openapi: What the function's OpenAPI document says of the routes, as JSON
            (``mesh.config.api_operations.describe``); ``""``: it has none.
    """

    events: tuple[str, ...]
    base: str
    resources: tuple[str, ...]
    max_message_bytes: int = 0
    openapi: str = ""


@dataclass(frozen=True, slots=True)
class Hedge:
    """Hedging of a method's calls (``meshapi.v1.Hedge``).

    Attributes:
        delay: Seconds between two attempts.
        max_attempts: Attempts in all, the first included.
    """

    delay: float
    max_attempts: int = 2


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """Trigger that calls a method for each event of one type.

    Attributes:
        event: Full name of the event message.
    """

    event: str

    def __str__(self) -> str:
        return f"event {self.event}"


@dataclass(frozen=True, slots=True)
class ScheduleTrigger:
    """Trigger that calls a method at the times of a schedule.

    Attributes:
        schedule: The cron line or the interval, as written (``mesh.contract.cron``).
        skip_missed: Ticks that fell due while the service was down are dropped.
    """

    schedule: str
    skip_missed: bool = False

    def __str__(self) -> str:
        return f"schedule {self.schedule}"


@dataclass(frozen=True, slots=True)
class ChangeTrigger:
    """Trigger that calls a method for each change of a row of one table.

    Attributes:
        service: The service of mesh.toml that owns the table.
        table: The table.
    """

    service: str
    table: str

    def __str__(self) -> str:
        return f"change {self.service}.{self.table}"


Trigger: TypeAlias = EventTrigger | ScheduleTrigger | ChangeTrigger
"""One trigger of a method.

Code that depends on the kind uses ``match`` and ends in ``assert_never``, so the type checker lists each place that a
fourth kind would need. ``str`` of a trigger is its text in ``mesh graph``.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One method of a service.

    Attributes:
        name: ``Register``.
        service: ``registration.v1.Registration``.
        path: ``/registration.v1.Registration/Register``.
        input: Message class of the request, in the contract's own pool.
        output: Message class of the response, in the contract's own pool.
        client_streaming: Whether the request is a stream.
        server_streaming: Whether the response is a stream.
        access: Access level.
        roles: If not empty, a user must have one of them.
        scopes: An API key must have all of them.
        timeout: Timeout of a call, seconds; None: not declared.
        no_time_limit: Whether calls have no timeout, whatever the defaults of the deployment are.
        success_status: HTTP status of a successful response.
        idempotent: Whether the method declares retry safety (``NO_SIDE_EFFECTS`` or ``IDEMPOTENT``).
        safe: Whether it declares ``NO_SIDE_EFFECTS``, so that a GET may call it.
        hedge: Hedging of its calls; None: no hedging.
        refuse_output_only: Whether a request that sets an OUTPUT_ONLY field is refused; otherwise the field is cleared.
        routes: HTTP routes.
        triggers: Triggers that call the method besides its clients.
        triggers_only: Whether nothing else calls it: it is INTERNAL because it has triggers, and declares no access.
        place: File and line, ``protos/login/v1/login.proto:12``.
        comment: Leading comment of the declaration.
        gateway: API Gateway emulation, for a Lambda function.
    """

    name: str
    service: str
    path: str
    input: type[Message]
    output: type[Message]
    client_streaming: bool = False
    server_streaming: bool = False
    access: Access = Access.AUTHENTICATED
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    timeout: float | None = None
    no_time_limit: bool = False
    idempotent: bool = False
    safe: bool = False
    success_status: int = 200
    routes: tuple[Route, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    triggers_only: bool = False
    place: str = ""
    comment: str = ""
    gateway: GatewayOptions | None = None
    hedge: Hedge | None = None
    refuse_output_only: bool = False

    @property
    def kind(self) -> str:
        """``unary_unary``, ``unary_stream``, ``stream_unary`` or ``stream_stream``."""
        return f"{'stream' if self.client_streaming else 'unary'}_{'stream' if self.server_streaming else 'unary'}"

    def time_limit(self, default: float | None) -> float | None:
        """Return the timeout of a call, seconds; None: no timeout.

        Args:
            default: Timeout of a method that declares none, seconds; None: no timeout.
        """
        return default if self.timeout is None and not self.no_time_limit else self.timeout


@dataclass(frozen=True, slots=True, eq=False)
class GrpcService:
    """gRPC service of the contract.

    Attributes:
        name: Full name, ``registration.v1.Registration``.
        methods: Methods by their short names, in order of declaration.
        calls: Full names of the services that it may call.
        publishes: Full names of the events that it may publish.
        place: File and line of the declaration.
        comment: Leading comment of the declaration.
    """

    name: str
    methods: Mapping[str, Method]
    calls: tuple[str, ...] = ()
    publishes: tuple[str, ...] = ()
    place: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class EventType:
    """Message type that services publish as events.

    Attributes:
        name: Full name of the message.
        key: Field whose value orders the events; ``""``: no order.
        message: The message class.
        place: File and line of the declaration.
    """

    name: str
    key: str
    message: type[Message]
    place: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """Checked contract: all services and event types of the .proto files.

    Attributes:
        services: Services by full name.
        events: Event types by full name of the message.
        files: The compiled descriptors with source info, which reflection serves.
        pool: Descriptor pool of the message classes. It is the contract's own and never clashes with generated code.
    """

    services: Mapping[str, GrpcService]
    events: Mapping[str, EventType]
    files: FileDescriptorSet
    pool: DescriptorPool
    _methods: dict[str, Method] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        methods = {method.path: method for service in self.services.values() for method in service.methods.values()}
        object.__setattr__(self, "_methods", methods)

    @property
    def methods(self) -> Mapping[str, Method]:
        """Methods by path (``/package.Service/Method``)."""
        return self._methods

    def captured_tables(self, service: str) -> tuple[str, ...]:
        """Return the tables of a service of mesh.toml whose changes trigger methods of the contract, sorted."""
        triggers = (trigger for method in self._methods.values() for trigger in method.triggers)
        changes = (trigger for trigger in triggers if isinstance(trigger, ChangeTrigger))
        return tuple(sorted({change.table for change in changes if change.service == service}))

    def method(self, path: str) -> Method | None:
        """Return the method with this path (``/package.Service/Method``), or None."""
        return self._methods.get(path)

    def message(self, name: str) -> type[Message]:
        """Return the class of the message with this full name.

        Raises:
            KeyError: The contract has no such message.
        """
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))


def generated_class(message: type[Message]) -> type[Message]:
    """Return the class that generated code has for the same message, or ``message`` if no such code was imported.

    Functions use the classes that they imported, and these live in protobuf's default pool.
    """
    try:
        found: Any = descriptor_pool.Default().FindMessageTypeByName(message.DESCRIPTOR.full_name)
    except KeyError:
        return message
    return message_factory.GetMessageClass(found)
