"""A page of another origin, in a real browser: JSON, gRPC-Web and Server-Sent Events through the edge of a mesh."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import chromium as chromium  # noqa: PLC0414 - a fixture
from mesh_process import Mesh
from selenium.webdriver import Chrome

PROTO = """syntax = "proto3";
package greet.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
service Greeter {
  rpc Greet(Name) returns (Greeting) {
    option (google.api.http) = { post: "/v1/greet" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Count(Name) returns (stream Greeting) {
    option (google.api.http) = { get: "/v1/count/{name}" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
message Name { string name = 1; }
message Greeting { string text = 1; }
"""
FUNCTIONS = '''"""Greets."""

import greet_pb2 as pb
from mesh import InvalidArgument


async def greet(request, context):
    if not request.name:
        raise InvalidArgument("say who")
    return pb.Greeting(text=f"hello {request.name}")


async def count(request, context):
    for number in range(3):
        yield pb.Greeting(text=f"{request.name} {number}")
'''
MANIFEST = """protos = ["."]
[edge]
listen = "127.0.0.1:0"
cors = ["{origin}"]
[services.greeter]
module = "greet_functions"
serves = ["greet.v1.Greeter"]
"""
SCRIPT = """
const [edge, name, done] = arguments;
// One message of one string field: tag 0x0a, length, text; before it the flag and the length of the frame.
const frame = text => {
  const bytes = new TextEncoder().encode(text);
  const message = bytes.length ? [0x0a, bytes.length, ...bytes] : [];
  return new Uint8Array([0, 0, 0, 0, message.length, ...message]);
};
const text = bytes => new TextDecoder().decode(bytes);
(async () => {
  const out = {};
  const json = await fetch(`${edge}/v1/greet`, {
    method: 'POST', headers: {'content-type': 'application/json'}, body: JSON.stringify({name}),
  });
  out.json = await json.json();
  out.trace = json.headers.get('x-trace-id');
  const refused = await fetch(`${edge}/v1/greet`, {
    method: 'POST', headers: {'content-type': 'application/json'}, body: '{}',
  });
  out.refused = [refused.status, (await refused.json()).message];
  const ask = async text => {
    const answer = await fetch(`${edge}/greet.v1.Greeter/Greet`, {
      method: 'POST', headers: {'content-type': 'application/grpc-web+proto', 'x-grpc-web': '1'}, body: frame(text),
    });
    return [answer.headers, new Uint8Array(await answer.arrayBuffer())];
  };
  const [, bytes] = await ask(name);
  const length = bytes[4];
  out.web = text(bytes.slice(7, 5 + length));
  out.trailers = text(bytes.slice(10 + length));
  const [headers, rest] = await ask('');
  out.failed = headers.get('grpc-status') || text(rest.slice(5));
  out.events = await new Promise((resolve, reject) => {
    const found = [], source = new EventSource(`${edge}/v1/count/${name}`);
    source.onmessage = event => {
      found.push(JSON.parse(event.data).text);
      if (found.length === 3) { source.close(); resolve(found); }
    };
    source.onerror = () => { source.close(); reject(new Error('the stream broke')); };
  });
  return out;
})().then(done, error => done({error: String(error)}));
"""


class Page(BaseHTTPRequestHandler):
    """An empty page; its origin is what matters."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another origin</title>")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def origin() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def edge(tmp_path: Path, origin: str) -> Iterator[str]:
    (tmp_path / "greet.proto").write_text(PROTO)
    (tmp_path / "greet_functions.py").write_text(FUNCTIONS)
    (tmp_path / "mesh.toml").write_text(MANIFEST.format(origin=origin))
    mesh = Mesh(tmp_path / "mesh.toml", tmp_path / ".mesh", {})
    try:
        yield mesh.ready().edge
    finally:
        assert mesh.stop() == 0, mesh.output()


def test_json_grpc_web_and_events_from_another_origin(chromium: Chrome, origin: str, edge: str) -> None:
    chromium.get(origin)
    chromium.set_script_timeout(20)
    found = chromium.execute_async_script(SCRIPT, edge, "ada")
    assert "error" not in found, found
    assert found["json"] == {"text": "hello ada"}
    assert len(found["trace"]) == 32
    assert found["refused"] == [400, "say who"]
    assert found["web"] == "hello ada"
    assert "grpc-status:0" in found["trailers"].replace(" ", "")
    assert "3" in found["failed"]
    assert found["events"] == ["ada 0", "ada 1", "ada 2"]


def test_an_origin_that_is_not_named_gets_nothing(chromium: Chrome, edge: str) -> None:
    chromium.get("data:text/html,<title>no origin</title>")
    chromium.set_script_timeout(20)
    found = chromium.execute_async_script(SCRIPT, edge, "ada")
    assert "Failed to fetch" in found["error"]
