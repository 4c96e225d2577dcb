"""The contract: what the .proto files say, as frozen values that the edge, the sidecar and the graph share.

``mesh.contract.loader`` makes it from compiled descriptors and checks it; nothing here can be half right.
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
    "Method",
    "Route",
    "ScheduleTrigger",
    "Trigger",
    "generated_class",
]


class Access(Enum):
    """Who may call a method (``meshapi.v1.Access``, with the default resolved)."""

    PUBLIC = "public"
    """Anyone."""
    AUTHENTICATED = "authenticated"
    """A verified user, or a service of the mesh that declares the call."""
    INTERNAL = "internal"
    """Services of the mesh that declare the call, and triggers; never through the edge."""


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP rule of a method; ``additional_bindings`` are routes of their own.

    Attributes:
        verb: HTTP method in upper case, or ``"*"`` for any.
        template: The path template.
        body: ``"*"``, the name of the request field that the body holds, or ``""`` for no body.
        response_body: The name of the response field that is the HTTP body, or ``""`` for the whole response.
    """

    verb: str
    template: Template
    body: str = ""
    response_body: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.template.text}"


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How HTTP reaches a Lambda function: as an event of API Gateway (``meshapi.v1.Gateway``).

    Attributes:
        events: The event of each route, in their order: ``"rest"``, ``"http-1.0"``, ``"http-2.0"``, ``"url"`` or
            ``"body"`` (``mesh.config.api_document``).
        base: What stands before the resources in every path.
        resources: API Gateway's path of each route, in their order.
        largest: Bytes of the largest request message; 0: not said.
    """

    events: tuple[str, ...]
    base: str
    resources: tuple[str, ...]
    largest: int = 0


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
        client_streaming: The request is a stream.
        server_streaming: The response is a stream.
        access: Who may call it.
        roles: If not empty, a user must hold one of them.
        timeout: The longest a call may take, seconds; None if nothing was said.
        no_time_limit: A call may take as long as it likes, whatever the defaults of the deployment are.
        success_status: The HTTP status of its answer when it succeeds.
        idempotent: It declares retry safety (``NO_SIDE_EFFECTS`` or ``IDEMPOTENT``).
        routes: HTTP routes.
        triggers: What else calls it.
        place: ``protos/login/v1/login.proto:12``.
        comment: Its leading comment.
        gateway: How HTTP reaches it, if it is a Lambda function.
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
    timeout: float | None = None
    no_time_limit: bool = False
    idempotent: bool = False
    success_status: int = 200
    routes: tuple[Route, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    place: str = ""
    comment: str = ""
    gateway: GatewayOptions | None = None

    @property
    def kind(self) -> str:
        """``unary_unary``, ``unary_stream``, ``stream_unary`` or ``stream_stream``."""
        return f"{'stream' if self.client_streaming else 'unary'}_{'stream' if self.server_streaming else 'unary'}"

    def time_limit(self, default: float | None) -> float | None:
        """Return the longest that a call may take, seconds; None without a limit.

        Args:
            default: What holds when the contract says nothing, seconds; None: no limit.
        """
        return default if self.timeout is None and not self.no_time_limit else self.timeout


@dataclass(frozen=True, slots=True, eq=False)
class GrpcService:
    """One service of the contract.

    Attributes:
        name: Full name, ``registration.v1.Registration``.
        methods: By their short names, in order of declaration.
        calls: Full names of the services that it may call.
        publishes: Full names of the events that it may publish.
        place: Where it stands.
        comment: Its leading comment.
    """

    name: str
    methods: Mapping[str, Method]
    calls: tuple[str, ...] = ()
    publishes: tuple[str, ...] = ()
    place: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class EventType:
    """One event message.

    Attributes:
        name: Full name of the message.
        key: The field whose value keeps events in order; ``""`` if the order does not matter.
        message: The message class.
        place: Where it stands.
    """

    name: str
    key: str
    message: type[Message]
    place: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """All services and events of the .proto files.

    Attributes:
        services: By full name.
        events: By full name of the message.
        files: The compiled descriptors, with source info; reflection serves them.
        pool: Where the message classes live. It is the contract's own, so that it never clashes with generated code.
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
        """Every method by its path."""
        return self._methods

    def captured_tables(self, service: str) -> tuple[str, ...]:
        """Return the tables of a service of mesh.toml whose changes trigger methods of the contract, sorted."""
        triggers = (trigger for method in self._methods.values() for trigger in method.triggers)
        changes = (trigger for trigger in triggers if isinstance(trigger, ChangeTrigger))
        return tuple(sorted({change.table for change in changes if change.service == service}))

    def method(self, path: str) -> Method | None:
        """Return the method of a path (``/package.Service/Method``), or None."""
        return self._methods.get(path)

    def message(self, name: str) -> type[Message]:
        """Return the class of the message with this full name.

        Raises:
            KeyError: There is none in the contract.
        """
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))


def generated_class(message: type[Message]) -> type[Message]:
    """Return the class from generated code for the same message if such code has been imported, else ``message``.

    A function gets and compares the classes that it imported; those live in protobuf's default pool.
    """
    try:
        found: Any = descriptor_pool.Default().FindMessageTypeByName(message.DESCRIPTOR.full_name)
    except KeyError:
        return message
    return message_factory.GetMessageClass(found)
