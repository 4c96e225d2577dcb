"""Server reflection, v1 and v1alpha, as a client library uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb
from hosting import ECHO, hosted

from mesh.contract.model import Contract

Ask = Any


@pytest.fixture(params=["v1", "v1alpha"])
async def ask(request: pytest.FixtureRequest, contract: Contract) -> AsyncIterator[Ask]:
    """Send one request; the messages of v1alpha and v1 are the same on the wire."""
    async with hosted(contract) as address, grpc.aio.insecure_channel(address) as channel:
        method = channel.stream_stream(
            f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )
        call = method()

        async def one(**fields: Any) -> pb.ServerReflectionResponse:
            await call.write(pb.ServerReflectionRequest(host="h", **fields))
            response = await call.read()
            assert response.original_request == pb.ServerReflectionRequest(host="h", **fields)
            return response

        yield one
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


def _files(response: pb.ServerReflectionResponse) -> dict[str, FileDescriptorProto]:
    raw = response.file_descriptor_response.file_descriptor_proto
    return {file.name: file for file in map(FileDescriptorProto.FromString, raw)}


async def test_only_what_is_served_here_is_listed(ask: Ask) -> None:
    response = await ask(list_services="")
    assert [service.name for service in response.list_services_response.service] == [
        ECHO,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


SYMBOLS = [
    ECHO,
    f"{ECHO}.Unary",
    "conformance.v1.EchoRequest",
    "conformance.v1.EchoRequest.text",
    "grpc.health.v1.HealthCheckResponse.ServingStatus",
    "grpc.health.v1.HealthCheckResponse.SERVING",
    "meshapi.v1.method",
    "meshapi.v1.PUBLIC",
    "meshapi.v1.Trigger.kind",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]


@pytest.mark.parametrize("symbol", SYMBOLS)
async def test_one_answer_builds_the_types_of_a_symbol(ask: Ask, symbol: str) -> None:
    files = _files(await ask(file_containing_symbol=symbol))
    pool = descriptor_pool.DescriptorPool()
    pending = list(files.values())
    while pending:
        ready = [file for file in pending if not any(other.name in file.dependency for other in pending)]
        assert ready, "a dependency is missing"
        for file in ready:
            pool.Add(file)
            pending.remove(file)
    if symbol.endswith("Reflection"):
        method = pool.FindServiceByName(symbol).methods[0]
        assert method.input_type.full_name == symbol + "Request"
        message_factory.GetMessageClass(method.input_type)(list_services="x")


async def test_a_file_by_its_name(ask: Ask) -> None:
    response = await ask(file_by_filename="conformance/v1/conformance.proto")
    assert next(iter(_files(response))) == "conformance/v1/conformance.proto"
    assert "google/api/http.proto" in _files(response)


async def test_files_come_in_the_order_of_grpcio(ask: Ask, contract: Contract) -> None:
    stock = reflection.ReflectionServicer([ECHO], contract.pool)
    for file in contract.files.file:
        wanted = pb.ServerReflectionRequest(file_by_filename=file.name)
        (expected,) = stock.ServerReflectionInfo(iter([wanted]), None)
        assert list(_files(await ask(file_by_filename=file.name))) == list(_files(expected))


async def test_extensions(ask: Ask) -> None:
    of = "google.protobuf.MethodOptions"
    wanted = pb.ExtensionRequest(containing_type=of, extension_number=51601)
    assert next(iter(_files(await ask(file_containing_extension=wanted)))) == "meshapi/v1/annotations.proto"
    numbers = (await ask(all_extension_numbers_of_type=of)).all_extension_numbers_response
    assert (numbers.base_type_name, list(numbers.extension_number)) == (of, [51601, 72295728])
    none = (await ask(all_extension_numbers_of_type="conformance.v1.EchoRequest")).all_extension_numbers_response
    assert list(none.extension_number) == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"file_by_filename": "none.proto"}, 5),
        ({"file_containing_symbol": "no.such.Symbol"}, 5),
        ({"file_containing_extension": pb.ExtensionRequest(containing_type="x", extension_number=1)}, 5),
        ({"all_extension_numbers_of_type": "no.such.Type"}, 5),
        ({}, 3),
    ],
)
async def test_what_is_not_there_is_an_error_and_the_stream_goes_on(
    ask: Ask, fields: dict[str, Any], code: int
) -> None:
    assert (await ask(**fields)).error_response.error_code == code
    assert (await ask(list_services="")).list_services_response.service
