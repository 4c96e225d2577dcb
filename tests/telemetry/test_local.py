"""What `mesh up` does without a collector: spans → exporter → receiver on a real server → tree."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import h2corn
import pytest
from telemetry_parts import Request, call_of

from mesh.call import Call
from mesh.telemetry import Telemetry, trace_tree
from mesh.telemetry.otlp_receiver import Receiver
from mesh.telemetry.trace_store import Store


@pytest.mark.parametrize("compression", ["none", "gzip"])
async def test_from_a_call_to_its_tree(start: Callable[..., Telemetry], compression: str) -> None:
    app = Receiver(Store(), "secret of the run")
    server = h2corn.Server(app, h2corn.Config(bind=("127.0.0.1:0",), access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await server.wait_started()
    url = f"http://{server.addresses[0]}"
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    edge = start("edge", url, "secret of the run", OTEL_EXPORTER_OTLP_COMPRESSION=compression, **proxy)
    registration = start("registration", url, "secret of the run")

    async def function(call: Call) -> None:
        await asyncio.sleep(0)

    async def route(call: Call) -> None:
        request: Any = call
        request.route, request.status = "/v1/users", 201
        await edge.outbound(call_of(), lambda out: registration.inbound(call_of(*out.metadata.pairs), function))

    request = Request(verb="POST", path="/v1/users")
    await edge.http(request, route)
    assert await asyncio.to_thread(edge.flush)
    assert await asyncio.to_thread(registration.flush)
    trace_id = dict(request.headers)[b"x-trace-id"].decode()

    def get() -> Any:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{url}/traces/{trace_id[:12]}", headers={"authorization": "Bearer secret of the run"}
        )
        with direct.open(request, timeout=5) as answer:
            return json.load(answer)

    lines = trace_tree.render(await asyncio.to_thread(get), 120).splitlines()
    assert lines[0].startswith(f"trace {trace_id}  20")
    assert [line.lstrip().split("  ")[0] for line in lines[1:]] == [
        "POST /v1/users",
        "└─ registration.v1.Registration/Register",
        "└─ registration.v1.Registration/Register",
    ]
    assert [line.split()[2] for line in lines[2:]] == ["edge", "registration"]
    assert lines[1].endswith("201")
    server.shutdown()
    await serving


def test_reading_traces_does_not_load_the_sdk() -> None:
    code = (
        "import sys, mesh.telemetry.otlp_receiver, mesh.telemetry.trace_tree;"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
