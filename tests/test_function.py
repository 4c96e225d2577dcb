"""Functions: lookup by name, and the faults of a module."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import ECHO, hosted

from mesh.contract.function_names import function_name
from mesh.contract.model import Access, Contract, GrpcService, Method
from mesh.faults import Faults
from mesh.function import Functions

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module and return its name; ``base`` gives it all functions of apps.echo first."""
    monkeypatch.syspath_prepend(tmp_path)
    made: list[str] = []

    def one(source: str, *, base: bool = True, name: str = "") -> str:
        name = name or f"user_functions_{tmp_path.name}_{len(made)}".replace("-", "_")
        text = ("from apps.echo import *\n" if base else "") + textwrap.dedent(source)
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)
        return name

    yield one
    for name in made:
        sys.modules.pop(name, None)


def faults(contract: Contract, module: str) -> list[str]:
    with pytest.raises(Faults) as caught:
        Functions(module, [contract.services[ECHO]])
    return [f"{Path(fault.place).name}: {fault.text}" for fault in caught.value.faults]


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("Register", "register"),
        ("GetUser", "get_user"),
        ("GetHTTPStatus", "get_http_status"),
        ("ListV2Users", "list_v2_users"),
        ("JWKS", "jwks"),
        ("already_snake", "already_snake"),
        ("Import", "import_"),
    ],
)
def test_names(method: str, name: str) -> None:
    assert function_name(method) == name


def test_a_module_that_is_not_there(contract: Contract) -> None:
    assert faults(contract, "nowhere.functions") == [
        "nowhere.functions: there is no module 'nowhere' where Python looks for it"
    ]
    assert faults(contract, "apps.nothing") == [
        "apps.nothing: there is no module 'apps.nothing' where Python looks for it"
    ]


def test_an_import_that_fails_names_the_user_s_line(contract: Contract, write: Write) -> None:
    helper = write("import json\n\ndef broken():\n    return json.loads('{')\n", base=False)
    module = write(f"import {helper}\n\n{helper}.broken()\n", base=False)
    assert faults(contract, module)[0].startswith(f"{helper}.py:4: the module {module} cannot be imported: JSONDecode")
    module = write("\nimport not_installed_here\n", base=False)
    (found,) = faults(contract, module)
    assert found.startswith(f"{module}.py:2: the module {module} cannot be imported: ModuleNotFoundError: No module")
    module = write("import sys\n\nsys.exit('no key')\n", base=False)
    (found,) = faults(contract, module)
    assert found == f"{module}.py:3: the module {module} cannot be imported: SystemExit: no key"
    module = write("class Panic(BaseException): ...\nraise Panic('in an extension')\n", base=False)
    (found,) = faults(contract, module)
    assert found == f"{module}.py:2: the module {module} cannot be imported: Panic: in an extension"
    module = write("import asyncio\nraise asyncio.CancelledError\n", base=False)
    assert "cannot be imported: CancelledError" in faults(contract, module)[0]
    module = write("def broken(:\n    pass\n", base=False)
    assert faults(contract, module)[0].startswith(f"{module}.py:1: SyntaxError: ")


def test_missing_functions_all_at_once(contract: Contract, write: Write) -> None:
    module = write("async def unary(request, context): ...\n", base=False)
    found = faults(contract, module)
    assert len(found) == 5
    assert found[0].startswith(f"{module}.py:1: there is no function 'bidi' for {ECHO}/Bidi (conformance/v1/")
    assert found[0].endswith("write async def bidi(requests, context), which yields each response")
    assert any(fault.endswith("; write async def slow(request, context)") for fault in found)


SHAPES = {
    "unary = 5": "conformance.proto:17) is no function; it is of type int",
    "async def unary(request): ...": (
        "unary(request) does not take the two arguments of conformance.v1.Echo/Unary; "
        "write async def unary(request, context)"
    ),
    "async def unary(request, context, more): ...": "unary(request, context, more) does not take the two arguments",
    "async def unary(request, context):\n    yield 1": "unary yields, but conformance.v1.Echo/Unary",
    "def unary(request, context):\n    yield 1": "unary yields, but conformance.v1.Echo/Unary",
    "async def server_stream(request, context): ...": "server_stream does not yield, but conformance.v1.Echo/ServerStr",
    "def bidi(request, context): return []": "bidi does not yield, but conformance.v1.Echo/Bidi",
    "def startup(service): ...": "startup is a hook of the mesh; write it as async def startup(service)",
    "async def shutdown(): ...": "shutdown is a hook of the mesh; write it as async def shutdown(service)",
}


@pytest.mark.parametrize("source", SHAPES)
def test_wrong_shapes(contract: Contract, write: Write, source: str) -> None:
    (found,) = faults(contract, write(source))
    assert SHAPES[source] in found


def test_two_methods_cannot_share_a_function(contract: Contract) -> None:
    echo = contract.services[ECHO]
    one = echo.methods["Unary"]
    twin = Method("Unary", "other.v1.Other", "/other.v1.Other/Unary", one.input, one.output, access=Access.PUBLIC)
    with pytest.raises(Faults, match=r"conformance\.v1\.Echo/Unary and other\.v1\.Other/Unary both need the function"):
        Functions("apps.echo", [echo, GrpcService("other.v1.Other", {"Unary": twin})])


GOOD = {
    "wrapped": """
        import functools

        def plain(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)
            return wrapper

        unary = plain(unary)
        server_stream = plain(server_stream)
        """,
    "wrapped, awaiting": """
        import functools

        def awaiting(function):
            @functools.wraps(function)
            async def wrapper(*args):
                return await function(*args)
            return wrapper

        unary = awaiting(unary)
        """,
    "an object": """
        class Unary:
            async def __call__(self, request, context, *, optional=None):
                return pb.EchoResponse(text=request.text)

        unary = Unary()
        """,
    "partial": """
        import functools

        async def full(prefix, request, context):
            return pb.EchoResponse(text=request.text)

        unary = functools.partial(full, "p")
        """,
}


@pytest.mark.parametrize("name", GOOD)
async def test_callables_of_every_make(contract: Contract, write: Write, name: str) -> None:
    async with hosted(contract, write(GOOD[name])) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        assert (await stub.Unary(pb.EchoRequest(text="t"))).text == "t"
        assert len([response async for response in stub.ServerStream(pb.EchoRequest(count=2))]) == 2


WRONG = {
    "returned None, and": "return None",
    "returned str, and": "return 'text'",
    "returned conformance.v1.EchoRequest, and": "return request",
}


@pytest.mark.parametrize("said", WRONG)
@pytest.mark.parametrize("prefix", ["async def", "def"])
async def test_a_wrong_reply_is_a_logged_bug(
    contract: Contract, write: Write, said: str, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = write(f"{prefix} unary(request, context):\n    {WRONG[said]}\n")
    async with hosted(contract, module) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    assert f"{module}.unary {said} {ECHO}/Unary answers with conformance.v1.EchoResponse" in caplog.text


async def test_a_reply_from_any_pool_will_do(contract: Contract, write: Write) -> None:
    """The contract's own class is not the generated one; its full name is what counts."""
    module = write("reply = None\nasync def unary(request, context):\n    return reply\n")
    async with hosted(contract, module) as address, grpc.aio.insecure_channel(address) as channel:
        made: Any = contract.message("conformance.v1.EchoResponse")
        sys.modules[module].reply = made(text="own pool")  # type: ignore[attr-defined]
        assert (await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())).text == "own pool"


async def test_functions_get_the_classes_that_they_import(contract: Contract, write: Write) -> None:
    module = write(
        """
        def unary(request, context):
            assert type(request) is pb.EchoRequest
            return pb.EchoResponse(text=type(request).__module__)
        """
    )
    async with hosted(contract, module) as address, grpc.aio.insecure_channel(address) as channel:
        response = await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
    assert response.text == "conformance.v1.conformance_pb2"


@pytest.mark.parametrize("hook", ["startup", "shutdown"])
@pytest.mark.parametrize(
    ("line", "text", "cause"),
    [
        ("raise SystemExit(3)", "SystemExit was raised, which is no Exception: 3", SystemExit),
        ("raise KeyboardInterrupt", "KeyboardInterrupt was raised, which is no Exception", KeyboardInterrupt),
        ("asyncio.current_task().cancel(); await asyncio.sleep(9)", "not by the mesh", asyncio.CancelledError),
    ],
)
async def test_a_hook_that_exits_is_a_bug(
    contract: Contract, write: Write, hook: str, line: str, text: str, cause: type[BaseException]
) -> None:
    module = write(f"import asyncio\n\nasync def {hook}(service):\n    {line}\n")
    with pytest.raises(RuntimeError, match=text) as caught:
        async with hosted(contract, module):
            pass
    assert isinstance(caught.value.__cause__, cause)


async def test_a_thread_has_the_call_s_context_variables(contract: Contract, write: Write) -> None:
    module = write(
        """
        import threading
        from mesh.call import current

        def unary(request, context):
            assert threading.current_thread() is not threading.main_thread()
            return pb.EchoResponse(text=str(current.get() is context.call))
        """
    )
    async with hosted(contract, module) as address, grpc.aio.insecure_channel(address) as channel:
        assert (await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())).text == "True"


@pytest.mark.parametrize("key", ["grpc-status", "content-type", "Content-Length", "connection", "bad key", ""])
async def test_metadata_that_is_not_the_function_s_to_set(contract: Contract, write: Write, key: str) -> None:
    module = write(
        f"""
        async def unary(request, context):
            for setter in (context.set_header, context.set_trailer):
                try:
                    setter({key!r}, "1")
                except ValueError:
                    continue
                raise AssertionError
            return pb.EchoResponse(text="refused")
        """
    )
    async with hosted(contract, module) as address, grpc.aio.insecure_channel(address) as channel:
        assert (await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())).text == "refused"
