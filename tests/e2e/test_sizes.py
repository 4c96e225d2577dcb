"""Messages beyond ``max_message``, both ways: what each way in tells the caller, and how often the function ran."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from mesh_process import Answer, Mesh
from mesh_process import http as ask
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

LIMIT = 100_000
MORE = 200_000

PROTO = """syntax = "proto3";
package sizes.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
message Blob { bytes data = 1; int32 wanted = 2; }
service Store {
  rpc Put(Blob) returns (Blob) {
    option (google.api.http) = { post: "/v1/put" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Give(Blob) returns (stream Blob) {
    option (google.api.http) = { post: "/v1/give" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Take(stream Blob) returns (Blob) {
    option (google.api.http) = { post: "/v1/take" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Swap(stream Blob) returns (stream Blob) {
    option (google.api.http) = { post: "/v1/swap" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
service Front {
  option (meshapi.v1.service) = { calls: "sizes.v1.Store" };
  rpc Relay(Blob) returns (Blob) {
    option (google.api.http) = { post: "/v1/relay" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc RelayStream(Blob) returns (Blob) {
    option (google.api.http) = { post: "/v1/relay-stream" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Caught(Blob) returns (Blob) {
    option (google.api.http) = { post: "/v1/caught" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
"""

FUNCTIONS = """
import grpc
from sizes.v1 import sizes_pb2 as pb
from sizes.v1 import sizes_pb2_grpc as rpc


def blob(request):
    return pb.Blob(data=bytes(request.wanted))


async def put(request, context):
    with open(context.settings["ran"], "a") as file:
        file.write("put\\n")
    return blob(request)


async def give(request, context):
    yield pb.Blob(data=b"first")
    yield blob(request)


async def take(requests, context):
    count = 0
    async for request in requests:
        count += 1
    return pb.Blob(wanted=count)


async def swap(requests, context):
    async for request in requests:
        yield blob(request)


async def relay(request, context):
    return await context.stub(rpc.StoreStub).Put(request)


async def relay_stream(request, context):
    async for answer in context.stub(rpc.StoreStub).Swap(iter([request])):
        pass
    return answer


async def caught(request, context):
    try:
        return await context.stub(rpc.StoreStub).Put(request)
    except grpc.aio.AioRpcError as error:
        return pb.Blob(data=f"{error.code().name}: {error.details()}".encode())
"""

MANIFEST = """
channel = "{channel}"
[edge]
listen = "127.0.0.1:0"
max_body = "1MB"
[services.store]
module = "sizes_functions"
serves = ["sizes.v1.Store"]
max_message = 100000
{workers}
[services.store.settings]
ran = "{ran}"
[services.front]
module = "sizes_functions"
serves = ["sizes.v1.Front"]
{workers}
"""


@pytest.fixture(scope="module", params=["ngh2", "grpcio"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mesh of functions in the sidecar, on our channel; and one in workers, on grpcio's."""
    root = tmp_path_factory.mktemp(f"sizes-{request.param}")
    (root / "protos" / "sizes" / "v1").mkdir(parents=True)
    (root / "protos" / "sizes" / "v1" / "sizes.proto").write_text(PROTO)
    (root / "sizes_functions.py").write_text(FUNCTIONS)
    workers = "workers = { max = 1 }" if request.param == "grpcio" else ""
    ran = root / "ran"
    ran.touch()
    (root / "mesh.toml").write_text(MANIFEST.format(channel=request.param, workers=workers, ran=ran))
    running: Any = Mesh(root / "mesh.toml", root / "state", {})
    running.ran = lambda: ran.read_text().count("put")
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()


@pytest.fixture(scope="module")
def sizes() -> Any:
    """The classes of the contract, for clients of gRPC: made from text, as no stubs are generated here."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="sizes_client.proto", package="sizes.client", syntax="proto3")
    message = file.message_type.add(name="Blob")
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="data", number=1, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    message.field.add(name="wanted", number=2, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("sizes.client.Blob"))


def large(size: int = MORE) -> dict[str, Any]:
    return {"data": b64encode(bytes(size)).decode()}


def refused(answer: Answer, status: int, code: int, says: str) -> None:
    """Check that it says which message was too large and how large is allowed, and never asks for another try."""
    assert (answer.status, answer.json["code"]) == (status, code), answer
    assert answer.headers["retry-after"] is None
    assert says in answer.json["message"]
    assert "100000" in answer.json["message"]


def test_what_fits_exactly(mesh: Any) -> None:
    assert ask(f"{mesh.edge}/v1/put", "POST", {**large(LIMIT - 4)}).status == 200
    refused(ask(f"{mesh.edge}/v1/put", "POST", {**large(LIMIT - 3)}), 413, 11, "the request message has 100001 bytes")
    assert ask(f"{mesh.edge}/v1/put", "POST", {"wanted": LIMIT - 4}).status == 200
    refused(ask(f"{mesh.edge}/v1/put", "POST", {"wanted": LIMIT - 3}), 500, 13, "the response message has 100001 bytes")


def test_a_request_is_413_and_never_runs(mesh: Any) -> None:
    before = mesh.ran()
    refused(ask(f"{mesh.edge}/v1/put", "POST", large()), 413, 11, "the request message has")
    assert mesh.ran() == before


def test_an_answer_is_500_and_ran_once(mesh: Any) -> None:
    before = mesh.ran()
    refused(ask(f"{mesh.edge}/v1/put", "POST", {"wanted": MORE}), 500, 13, "the response message has")
    assert mesh.ran() == before + 1
    mesh.until(lambda: "sizes.v1.Store/Put: the response message has" in mesh.output())


@pytest.mark.parametrize("path", ["relay", "relay-stream"])
@pytest.mark.parametrize("body", [large(), {"wanted": MORE}], ids=["request", "answer"])
def test_through_a_function_that_called_it_is_internal(mesh: Any, path: str, body: dict[str, Any]) -> None:
    answer = ask(f"{mesh.edge}/v1/{path}", "POST", body)
    assert (answer.status, answer.json["code"], answer.json["message"]) == (500, 13, "internal error")
    assert answer.headers["retry-after"] is None


@pytest.mark.parametrize(
    ("body", "says"), [(large(), "the request message has"), ({"wanted": MORE}, "the response message has")]
)
def test_a_function_may_catch_it(mesh: Any, body: dict[str, Any], says: str) -> None:
    """Both channels have the code of gRPC."""
    answer = ask(f"{mesh.edge}/v1/caught", "POST", body)
    assert answer.status == 200, answer
    text = b64decode(answer.json["data"]).decode()
    assert text.startswith(f"RESOURCE_EXHAUSTED: {says}")
    assert "more than the 100000 that are allowed" in text


def test_a_stream_of_answers_says_it_in_its_own_form(mesh: Any) -> None:
    answer = ask(f"{mesh.edge}/v1/give", "POST", {"wanted": MORE}, headers={"accept": "text/event-stream"})
    *_, event = answer.body.decode().strip().split("\n\n")
    name, data = event.split("\n")
    assert (answer.status, name) == (200, "event: error")
    said = json.loads(data.removeprefix("data: "))
    assert (said["code"], said["message"].startswith("the response message has")) == (13, True)


@pytest.mark.parametrize("path", ["take", "swap"])
def test_a_stream_of_requests_is_413(mesh: Any, path: str) -> None:
    body = b"\n".join(json.dumps(one).encode() for one in ({"wanted": 1}, large()))
    headers = {"content-type": "application/x-ndjson", "accept": "application/json"}
    answer = ask(f"{mesh.edge}/v1/{path}", "POST", body, headers=headers)
    if path == "swap" and answer.status == 200:  # the first answer was sooner than the second request
        [*_, last] = answer.json
        assert last["error"]["code"] == 11
        return
    refused(answer, 413, 11, "the request message has")


def test_a_web_socket_closes_as_too_big(mesh: Any) -> None:
    with connect(f"{mesh.edge.replace('http', 'ws')}/v1/swap") as socket:
        socket.send(json.dumps(large()))
        assert "the request message has" in socket.recv()
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(("way", "side"), [("sidecar", "request"), ("edge", "request"), ("edge", "response")])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_stock_clients_of_grpc(mesh: Any, sizes: Any, way: str, side: str, compression: grpc.Compression) -> None:
    """The code is the one of gRPC, and the rich status says which message it was."""
    address = mesh.addresses["store"] if way == "sidecar" else mesh.edge.removeprefix("http://")
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        for kind in ("Put", "Swap"):
            make = channel.unary_unary if kind == "Put" else channel.stream_stream
            call = make(f"/sizes.v1.Store/{kind}", sizes.SerializeToString, sizes.FromString)
            request = sizes(data=bytes(MORE)) if side == "request" else sizes(wanted=MORE)
            with pytest.raises(grpc.RpcError) as caught:
                if kind == "Put":
                    call(request, compression=compression, timeout=20)
                else:
                    list(call(iter([request]), compression=compression, timeout=20))
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert f"the {side} message" in error.details()
            assert "100000" in error.details()
            rich = dict(error.trailing_metadata())["grpc-status-details-bin"]
            info = error_details_pb2.ErrorInfo()
            [detail] = status_pb2.Status.FromString(rich).details
            assert detail.Unpack(info)
            assert info.reason == f"{side.upper()}_TOO_LARGE"


def test_grpc_web(mesh: Any) -> None:
    body = b"\x10" + bytes([0x80 | MORE & 0x7F, 0x80 | MORE >> 7 & 0x7F, MORE >> 14])
    headers = {"content-type": "application/grpc-web+proto"}
    framed = b"\0" + len(body).to_bytes(4, "big") + body
    answer = ask(f"{mesh.edge}/sizes.v1.Store/Put", "POST", framed, headers=headers)
    assert answer.headers["grpc-status"] == "8"
    assert "response message has" in answer.headers["grpc-message"]
