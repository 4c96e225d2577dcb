"""Mistakes against the contract: each line with a ``!`` is an error for mypy and for pyright."""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from login.v1 import login_pb2
from login.v1.login_pb2_grpc import LoginBlockingStub, LoginStub
from odd.v1 import odd_pb2, shared_pb2

from mesh import Context

request = login_pb2.LoginRequest(login="a")
login_pb2.LoginRequest(logni="a")  # !
login_pb2.LoginRequest(login=1)  # !
request.logni = "a"  # !
request.login = 1  # !
print(request.passwrod)  # !
names = odd_pb2.Names()
names.Names = odd_pb2.Names()  # !
names.property = [1]  # !
names.at = 1  # !
names.HasField("mabye")  # !
names.WhichOneof("choise")  # !
names.any = "ONE"  # !


async def login(request: login_pb2.LoginRequest, context: Context) -> login_pb2.Tokens:
    await context.stub(LoginStub).Logni(request)  # !
    await context.stub(LoginStub).Login(login_pb2.RefreshRequest())  # !
    keys = await context.stub(LoginStub).GetKeys(login_pb2.GetKeysRequest(), timeuot=1)  # !
    print(keys.kyes)  # !
    print(context.stub(LoginStub).Login(request).access_token)  # !
    return await context.stub(LoginStub).GetKeys(login_pb2.GetKeysRequest())  # !


def logout(request: login_pb2.LoginRequest, context: Context) -> login_pb2.Tokens:
    return context.stub(LoginBlockingStub).GetKeys(login_pb2.GetKeysRequest())  # !


async def once(request: odd_pb2.Names, context: Context) -> int:
    return 1


async def collect(requests: Iterator[odd_pb2.Names], context: Context) -> shared_pb2.Shared:
    return shared_pb2.Shared()


async def watch(request: odd_pb2.Names, context: Context) -> shared_pb2.Shared:
    return shared_pb2.Shared()


async def talk(request: odd_pb2.Names, context: Context) -> AsyncIterator[shared_pb2.Shared]:
    yield shared_pb2.Shared()


def lambda_(request: shared_pb2.Shared, context: Context) -> shared_pb2.Shared:
    return request


if TYPE_CHECKING:
    from odd.v1.odd_pb2_grpc import OddFunctions

    from services import wrong

    _: OddFunctions = wrong  # !
