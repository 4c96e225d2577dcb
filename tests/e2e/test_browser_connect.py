"""connect-web in a real browser, on a page of another origin: calls of a mesh by the Connect protocol."""

from __future__ import annotations

import shutil
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cached_packages
import pytest
from browser import chromium as chromium  # noqa: PLC0414 - a fixture
from mesh_process import Mesh
from selenium.webdriver import Chrome

from mesh.contract import protoc

NODE = Path(__file__).parents[1] / "node" / "connect"
PROTO = """syntax = "proto3";
package greet.v1;
import "meshapi/v1/annotations.proto";
service Greeter {
  rpc Greet(Name) returns (Greeting) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Count(Name) returns (stream Greeting) { option (meshapi.v1.method) = { access: PUBLIC }; }
}
message Name { string name = 1; }
message Greeting { string text = 1; }
"""
FUNCTIONS = '''"""Greets."""

import greet_pb2 as pb
from mesh import InvalidArgument


async def greet(request, context):
    context.set_trailer("x-total", "1")
    if not request.name:
        raise InvalidArgument("say who", violations={"name": "is needed"})
    return pb.Greeting(text=f"hello {request.name}")


async def count(request, context):
    for number in range(3):
        yield pb.Greeting(text=f"{request.name} {number}")
'''
MANIFEST = """protos = ["."]
[edge]
listen = "127.0.0.1:0"
[edge.cors]
origins = ["{origin}"]
expose = ["trailer-x-total"]
[services.greeter]
module = "greet_functions"
serves = ["greet.v1.Greeter"]
"""
PAGE = b"""<!doctype html><title>another origin</title>
<script type="importmap">{"imports": {
  "@bufbuild/protobuf": "/@bufbuild/protobuf/dist/esm/index.js",
  "@bufbuild/protobuf/": "/@bufbuild/protobuf/dist/esm/",
  "@bufbuild/protobuf/wkt": "/@bufbuild/protobuf/dist/esm/wkt/index.js",
  "@bufbuild/protobuf/codegenv2": "/@bufbuild/protobuf/dist/esm/codegenv2/index.js",
  "@bufbuild/protobuf/reflect": "/@bufbuild/protobuf/dist/esm/reflect/index.js",
  "@bufbuild/protobuf/wire": "/@bufbuild/protobuf/dist/esm/wire/index.js",
  "@connectrpc/connect": "/@connectrpc/connect/dist/esm/index.js",
  "@connectrpc/connect/protocol": "/@connectrpc/connect/dist/esm/protocol/index.js",
  "@connectrpc/connect/protocol-connect": "/@connectrpc/connect/dist/esm/protocol-connect/index.js",
  "@connectrpc/connect/protocol-grpc-web": "/@connectrpc/connect/dist/esm/protocol-grpc-web/index.js",
  "@connectrpc/connect-web": "/@connectrpc/connect-web/dist/esm/index.js"
}}</script>"""
SCRIPT = """
const [edge, descriptors, useBinaryFormat, done] = arguments;
(async () => {
  const { createFileRegistry, fromBinary } = await import('@bufbuild/protobuf');
  const { FileDescriptorSetSchema } = await import('@bufbuild/protobuf/wkt');
  const { createClient } = await import('@connectrpc/connect');
  const { createConnectTransport } = await import('@connectrpc/connect-web');
  const bytes = Uint8Array.from(atob(descriptors), (one) => one.charCodeAt(0));
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
  const transport = createConnectTransport({ baseUrl: edge, useHttpGet: true, useBinaryFormat });
  const client = createClient(registry.getService('greet.v1.Greeter'), transport);
  const out = {};
  const onTrailer = (trailers) => { out.trailer = trailers.get('x-total'); };
  out.get = (await client.greet({ name: 'ada' }, { onTrailer })).text;
  out.error = await client.greet({}).catch((error) => [error.code, error.rawMessage, error.details.length]);
  out.stream = [];
  for await (const one of client.count({ name: 'ada' }, { timeoutMs: 10000 })) out.stream.push(one.text);
  out.kinds = [...new Set(performance.getEntriesByType('resource').map((one) => new URL(one.name))
    .filter((one) => one.origin === edge).map((one) => `${one.pathname} ${one.search !== ''}`))];
  return out;
})().then(done, (error) => done({ error: String(error) }));
"""


class Files(BaseHTTPRequestHandler):
    """A page, and the modules of npm that it imports."""

    modules: Path

    def do_GET(self) -> None:
        file = self.modules / self.path.lstrip("/")
        body = PAGE if self.path == "/" else file.read_bytes() if file.is_file() else b""
        self.send_response(200 if body else 404)
        self.send_header("content-type", "text/html" if self.path == "/" else "text/javascript")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def origin() -> Iterator[str]:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    Files.modules = cached_packages.npm(NODE / "package.json") / "node_modules"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_connect_web_in_a_browser(chromium: Chrome, origin: str, tmp_path: Path) -> None:
    (tmp_path / "greet.proto").write_text(PROTO)
    (tmp_path / "greet_functions.py").write_text(FUNCTIONS)
    (tmp_path / "mesh.toml").write_text(MANIFEST.format(origin=origin))
    descriptors = b64encode(protoc.load([tmp_path], tmp_path / "stubs").SerializeToString()).decode()
    mesh = Mesh(tmp_path / "mesh.toml", tmp_path / ".mesh", {})
    try:
        edge = mesh.ready().edge
        chromium.get(origin)
        chromium.set_script_timeout(20)
        for binary in (False, True):
            found = chromium.execute_async_script(SCRIPT, edge, descriptors, binary)
            assert "error" not in found or isinstance(found["error"], list), found
            assert (found["get"], found["trailer"], found["stream"]) == ("hello ada", "1", ["ada 0", "ada 1", "ada 2"])
            assert found["error"] == [3, "say who", 1]
            assert "/greet.v1.Greeter/Greet true" in found["kinds"]  # by GET
    finally:
        assert mesh.stop() == 0, mesh.output()
