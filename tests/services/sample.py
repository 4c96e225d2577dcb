"""Hosts the sample's real functions on real databases; only the wire between them is left out."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf import json_format
from login.v1 import login_pb2
from registration.v1 import registration_pb2

from mesh.auth import TokenVerifier
from mesh.call import Call, Identity, Metadata
from mesh.context import Context, Transaction
from mesh.database import Database
from mesh.errors import RemoteError, StatusError, Unimplemented
from services.login import functions as login_functions
from services.registration import functions as registration_functions

ROOT = Path(__file__).parent.parent.parent
Before = Callable[[str], Awaitable[None]]


class OnwardError(Exception, RemoteError):
    """What a stub raises when its call fails."""

    def __init__(self, status: StatusError) -> None:
        super().__init__(str(status))
        self.status = status


class Host:
    """``mesh.context.Service`` for one module of functions."""

    def __init__(self, name: str, functions: Any, url: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.functions = functions
        self.settings = settings
        self.log = logging.getLogger(f"sample.{name}")
        self.database = Database(url, migrations=ROOT / "services" / name / "migrations", name=name)
        self.other: Host | None = None
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        """What happens after an onward call of a method, before its caller goes on."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        return self.database.transaction()

    async def publish(self, event: Any) -> None:
        raise Unimplemented(f"no broker for {event}")

    def stub(self, stub_class: type[Any]) -> Any:
        assert stub_class.__name__ == "LoginStub"
        return SimpleNamespace(
            **{name: self._onward(name) for name in ("SetCredential", "RenameCredential", "DeleteCredentials")}
        )

    def _onward(self, name: str) -> Callable[[Any], Awaitable[Any]]:
        async def onward(request: Any) -> Any:
            assert self.other is not None
            try:
                answer = await self.other.call(name, request, caller=self.name)
            except StatusError as status:
                raise OnwardError(status) from None
            if name in self.after:
                await self.after[name]()
            return answer

        return onward

    async def call(
        self, name: str, request: Any = None, *, identity: Identity | None = None, caller: str | None = None
    ) -> Any:
        method = SimpleNamespace(path=f"/sample/{name}")
        call = Call(method, Metadata())
        call.identity, call.caller = identity, caller
        function = getattr(self.functions, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
        return await function(request, Context(call, self))


class Sample:
    """Registration and login."""

    def __init__(self, registration_url: str, login_url: str, **admin: str) -> None:
        self.registration = Host("registration", registration_functions, registration_url, dict(admin))
        self.login = Host("login", login_functions, login_url, {})
        self.registration.other = self.login
        self.tokens = TokenVerifier(self._keys, issuer="login", audience="mesh")

    async def start(self) -> None:
        for host in (self.login, self.registration):
            await host.database.start()
            await host.functions.startup(host)

    async def stop(self) -> None:
        await self.registration.database.stop()
        await self.login.database.stop()

    async def _keys(self) -> bytes:
        answer = await self.login.call("GetKeys", login_pb2.GetKeysRequest())
        return json_format.MessageToJson(answer).encode()

    async def register(self, name: str, email: str = "", password: str = "correct horse") -> Any:
        request = registration_pb2.RegisterRequest(name=name, email=email or f"{name}@example.com", password=password)
        return await self.registration.call("Register", request)

    async def log_in(self, login: str, password: str = "correct horse") -> Any:
        return await self.login.call("Login", login_pb2.LoginRequest(login=login, password=password))

    async def refresh(self, token: str) -> Any:
        return await self.login.call("Refresh", login_pb2.RefreshRequest(refresh_token=token))

    async def identity(self, login: str, password: str = "correct horse") -> Identity:
        return await self.verify((await self.log_in(login, password)).access_token)

    async def verify(self, access_token: str) -> Identity:
        return await self.tokens.verify(f"Bearer {access_token}".encode())
