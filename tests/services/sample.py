"""Hosts the sample's real functions on real databases; only the wire and the broker between them are left out.

What is published and what changes waits in the real outbox; ``settle`` takes the broker's part.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
from google.protobuf import json_format
from login.v1 import login_pb2
from registration.v1 import registration_pb2

from mesh.auth import Issuer, TokenVerifier
from mesh.call import Call, Identity, Metadata
from mesh.context import Context, Transaction
from mesh.contract import loader, protoc
from mesh.contract.model import ChangeTrigger, Contract, EventTrigger, generated_class
from mesh.database import Database
from mesh.errors import StatusError
from mesh.events.changes import capture
from mesh.events.changes.change_event import encoder
from mesh.events.cloudevents import Event
from mesh.events.publish import outbox
from mesh.events.publish.outbox import Outbox
from mesh.events.publish.publisher import Publications
from mesh.headers import CLIENT_ADDRESS
from mesh.rpc.client.call_error import call_error
from mesh.rules.message_checks import request_check
from services.audit import functions as audit_functions
from services.login import functions as login_functions
from services.registration import functions as registration_functions

ROOT = Path(__file__).parent.parent.parent
Before = Callable[[str], Awaitable[None]]


@functools.cache
def contract() -> Contract:
    """The contract of the sample mesh."""
    return loader.read(protoc.load([ROOT / "protos"], ROOT / "gen"))


class Host:
    """``mesh.context.Service`` for one module of functions."""

    def __init__(self, name: str, functions: Any, url: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.functions = functions
        self.settings = settings
        self.log = logging.getLogger(f"sample.{name}")
        self.service = contract().services[f"{name}.v1.{name.capitalize()}"]
        self.sqlite = url.startswith("sqlite")
        captured = contract().captured_tables(name)
        self.database = Database(
            url,
            migrations=ROOT / "services" / name / "migrations",
            name=name,
            before=[capture.suspend],
            after=[outbox.create, functools.partial(capture.install, service=name, tables=captured)],
            outbox=Outbox(Publications(contract(), [self.service.name], name), sqlite=self.sqlite),
        )
        self.checks = {name: request_check(method) for name, method in self.service.methods.items()}
        self.other: Host | None = None
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        """What happens after an onward call of a method, before its caller goes on."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self.database.transaction()

    async def publish(self, event: Any) -> None:
        raise AssertionError(f"what the sample publishes commits with a row: {event}")

    def stub(self, stub_class: type[Any]) -> Any:
        assert stub_class.__name__ == "LoginStub"
        return SimpleNamespace(
            **{
                name: self._onward(name)
                for name in ("SetCredential", "RenameCredential", "DeleteCredentials", "CheckPassword")
            }
        )

    def _onward(self, name: str) -> Callable[[Any], Awaitable[Any]]:
        async def onward(request: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - a stub's shape
            assert self.other is not None
            try:
                answer = await self.other.call(name, request, caller=self.name)
            except StatusError as status:
                raise call_error(status, grpc.aio.Metadata(), grpc.aio.Metadata()) from None
            if name in self.after:
                await self.after[name]()
            return answer

        return onward

    def function(self, name: str) -> Any:
        return getattr(self.functions, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())

    def context(
        self,
        name: str,
        metadata: Metadata,
        identity: Identity | None = None,
        caller: str | None = None,
        address: str = "",
    ) -> Context:
        call = Call(SimpleNamespace(path=f"/sample/{name}"), metadata)
        if address:  # as the edge says it
            metadata.append(CLIENT_ADDRESS, address.encode())
            caller = caller or "edge"
        call.identity, call.caller = identity, caller
        return Context(call, self)

    async def call(
        self,
        name: str,
        request: Any = None,
        *,
        identity: Identity | None = None,
        caller: str | None = None,
        address: str = "",
    ) -> Any:
        if request is not None:  # as the wire does
            request = type(request).FromString(request.SerializeToString())
        check = self.checks[name]
        if check is not None:
            check(request)
        return await self.function(name)(request, self.context(name, Metadata(), identity, caller, address))

    async def deliver(self, event: Event, subject: str) -> None:
        """Call the methods that this event is for."""
        told = {"ce-id": event.id, "ce-time": event.time.isoformat()}
        for method in self.service.methods.values():
            for trigger in method.triggers:
                if (isinstance(trigger, EventTrigger) and trigger.event == event.type) or (
                    isinstance(trigger, ChangeTrigger)
                    and subject.startswith(f"changes.{trigger.service}.{trigger.table}.")
                ):
                    request = generated_class(method.input).FromString(event.data)
                    metadata = Metadata.from_wire([(name.encode(), value.encode()) for name, value in told.items()])
                    await self.function(method.name)(request, self.context(method.name, metadata))


class Sample:
    """Registration, login and audit.

    Args:
        registration_url: Its database.
        login_url: Its database.
        audit_url: Its database; without one nothing is audited.
        admin: Settings of registration.
    """

    def __init__(self, registration_url: str, login_url: str, audit_url: str = "", **admin: str) -> None:
        self.registration = Host("registration", registration_functions, registration_url, dict(admin))
        self.login = Host("login", login_functions, login_url, {})
        self.audit = Host("audit", audit_functions, audit_url, {}) if audit_url else None
        self.subscribers = [self.login, *([self.audit] if self.audit else [])]
        self.registration.other = self.login
        self._encode = encoder(contract())
        self._relay = asyncio.Lock()
        self.tokens = TokenVerifier([Issuer(name="login", audiences=("mesh",), fetch=self._keys)])

    async def start(self) -> None:
        for host in (*self.subscribers, self.registration):
            await host.database.start()
            if hasattr(host.functions, "startup"):
                await host.functions.startup(host)
        await self.settle()

    async def stop(self) -> None:
        for host in (self.registration, *self.subscribers):
            await host.database.stop()

    async def settle(self) -> None:
        """Deliver what waits in the outbox of registration."""
        async with self._relay:
            async with self.registration.transaction() as tx:
                rows = await outbox.read(tx)
            for row in rows:
                message = self._encode(row)
                event = Event.from_message(message.headers, message.data)
                for host in self.subscribers:
                    await host.deliver(event, message.subject)
            if rows:
                async with self.registration.transaction() as tx:
                    await outbox.delete(tx, rows, sqlite=self.registration.sqlite)

    async def _keys(self) -> bytes:
        answer = await self.login.call("GetKeys", login_pb2.GetKeysRequest())
        return json_format.MessageToJson(answer).encode()

    async def register(self, name: str, email: str = "", password: str = "correct horse") -> Any:
        request = registration_pb2.RegisterRequest(name=name, email=email or f"{name}@example.com", password=password)
        user = await self.registration.call("Register", request)
        await self.settle()
        return user

    async def log_in(self, login: str, password: str = "correct horse", address: str = "") -> Any:
        return await self.login.call("Login", login_pb2.LoginRequest(login=login, password=password), address=address)

    async def refresh(self, token: str) -> Any:
        return await self.login.call("Refresh", login_pb2.RefreshRequest(refresh_token=token))

    async def identity(self, login: str, password: str = "correct horse") -> Identity:
        return await self.verify((await self.log_in(login, password)).access_token)

    async def verify(self, access_token: str) -> Identity:
        return await self.tokens.verify(f"Bearer {access_token}".encode())
