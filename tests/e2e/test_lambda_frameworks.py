"""Frameworks that adopters bring, unchanged, with the real packages: over HTTP, hosted and in workers of one call.

``tests/lambdas/frameworks`` has one application for each, with the same routes. The table of docs/lambda.md is held to
the versions that run here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from mesh_process import ROOT, Answer, Mesh, http

APPS = ROOT / "tests/lambdas/frameworks"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
CHALICE = "1.34.0"
CHALICE_SHA256 = "e0b01050a9dc3f4818a8bb4e36b67decf9066639db4cb21b8eb18edb99e9d1c9"
PLACES = {"hosted": "", "alone": "workers = { min = 1, max = 2, concurrency = 1 }\n"}
ROUTES = {"items/{number}": "get", "echo": "post", "image": "get", "cookies": "get", "boom": "get"}


@dataclass
class Case:
    """One way to bring an application."""

    handler: str
    payloads: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    routes: bool = False
    """Each route is one of the API, as Chalice deploys it; else the application gets every path."""
    missing: int = 404
    """Status of a path that it does not have."""


CASES = {
    "fastapi": Case("asgi_fastapi:handler", ["1.0", "2.0"]),
    "starlette": Case("asgi_starlette:handler", ["1.0", "2.0"]),
    "powertools-rest": Case("powertools:handler", ["1.0"], {"RESOLVER": "rest"}),
    "powertools-http": Case("powertools:handler", ["2.0"], {"RESOLVER": "http"}),
    "powertools-url": Case("powertools:handler", ["2.0"], {"RESOLVER": "url"}),
    "apig-wsgi": Case("wsgi:apig", ["1.0", "2.0"]),
    "serverless-wsgi": Case("wsgi:serverless", ["1.0", "2.0"]),
    "chalice": Case("rest_chalice:handler", ["1.0"], routes=True),
}


@dataclass
class Running:
    """A mesh with one case: a service for each payload format and each place, each below a path of its own.

    Two formats take a place each. The format is the edge's business, and every framework runs in both places.
    """

    name: str
    mesh: Mesh
    prefixes: list[str]

    def ask(self, prefix: str, path: str, *arguments: Any, **options: Any) -> Answer:
        return http(f"{self.mesh.edge}{prefix}/{path}", *arguments, **options)


@pytest.fixture(scope="session")
def chalice() -> str:
    """The folder of Chalice as it is deployed, without what its command line needs."""
    folder = ROOT / ".mesh" / f"test-chalice-{CHALICE}"
    if not (folder / "chalice").is_dir():
        fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
        folder.parent.mkdir(exist_ok=True)
        wanted = fresh.with_suffix(".txt")
        wanted.write_text(f"chalice=={CHALICE} --hash=sha256:{CHALICE_SHA256}\n")
        words = ["--quiet", "--no-deps", "--require-hashes", "--requirement", str(wanted), "--target", str(fresh)]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *words], capture_output=True, text=True, timeout=90, check=False
        )
        wanted.unlink()
        if done.returncode:
            pytest.skip(f"Chalice {CHALICE} cannot be had: {done.stderr.strip().splitlines()[-1]}")
        try:
            fresh.rename(folder)
        except OSError:  # another process of the tests was first
            shutil.rmtree(fresh)
    return str(folder)


def started(name: str, folder: Path, environ: dict[str, str]) -> Running:
    """Start the mesh of a case in an empty folder."""
    case = CASES[name]
    shutil.copytree(APPS, folder, dirs_exist_ok=True)
    manifest, prefixes = '[edge]\nlisten = "127.0.0.1:0"\n', []
    for payload, (place, workers) in zip(itertools.cycle(case.payloads), PLACES.items(), strict=False):
        service = f"v{payload[0]}{place}"
        paths = ROUTES if case.routes else {"{proxy+}": "any"}
        events = [{"http": {"path": f"/{service}/{path}", "method": verb}} for path, verb in paths.items()]
        (folder / f"{service}.json").write_text(json.dumps({"config": {}, "events": events}))
        environment = ", ".join(
            f"{key} = {json.dumps(value)}" for key, value in {"PREFIX": f"/{service}", **case.environment}.items()
        )
        manifest += (
            f'[services.{service}]\nlambda = "{case.handler}"\nevents = "{service}.json"\npayload = "{payload}"\n'
            f'timeout = "20s"\nenvironment = {{ {environment} }}\n{workers}'
        )
        prefixes.append(f"/{service}")
    (folder / "mesh.toml").write_text(manifest)
    return Running(name, Mesh(folder / "mesh.toml", folder / "state", environ), prefixes)


@pytest.fixture(scope="module", params=list(CASES))
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    environ = {"PYTHONPATH": request.getfixturevalue("chalice")} if request.param == "chalice" else {}
    found = started(request.param, tmp_path_factory.mktemp(request.param), environ)
    try:
        found.mesh.ready()
        yield found
    finally:
        code = found.mesh.stop()
    assert code == 0, found.mesh.output()


def test_a_get_with_path_query_and_header(running: Running) -> None:
    for prefix in running.prefixes:
        for _ in range(3):
            reply = running.ask(prefix, "items/7?q=1&q=two", headers={"X-Key": "Grüße".encode().hex()})
            assert (reply.status, reply.json) == (200, {"id": 7, "q": ["1", "two"], "key": "Grüße".encode().hex()})


def test_a_post_with_json(running: Running) -> None:
    for prefix in running.prefixes:
        reply = running.ask(prefix, "echo", "POST", {"text": "Grüße, 世界"})
        assert (reply.status, reply.json, reply.headers["x-made"]) == (201, {"text": "Grüße, 世界"}, "yes"), prefix


def test_an_image(running: Running) -> None:
    for prefix in running.prefixes:
        reply = running.ask(prefix, "image", headers={"Accept": "image/png"})
        assert (reply.status, reply.headers["content-type"], reply.body) == (200, "image/png", PNG), prefix


def test_two_cookies(running: Running) -> None:
    for prefix in running.prefixes:
        found = running.ask(prefix, "cookies").headers.get_all("set-cookie")
        assert [one.partition(";")[0] for one in found] == ["a=1", "b=2"], prefix


def test_an_error_and_a_path_that_is_not_there(running: Running) -> None:
    for prefix in running.prefixes:
        assert running.ask(prefix, "boom").status == 500
        assert running.ask(prefix, "none").status == CASES[running.name].missing
        assert running.ask(prefix, "items/7").status == 200


def test_requests_that_overlap(running: Running) -> None:
    with ThreadPoolExecutor(8) as pool:
        for prefix in running.prefixes:
            asked = [pool.submit(running.ask, prefix, f"items/{number}?q=x") for number in range(40)]
            assert [(one.result().status, one.result().json["id"]) for one in asked] == [
                (200, number) for number in range(40)
            ], prefix


def test_powertools_logger_and_metrics_write_what_they_write_on_aws(running: Running) -> None:
    if not running.name.startswith("powertools"):
        pytest.skip("of Powertools only")
    for prefix in running.prefixes:
        running.ask(prefix, "items/7?q=1")
    names = {prefix[1:] for prefix in running.prefixes}
    logged = r"item asked for .*\bfunction_name=(\w+) .*\bfunction_request_id=[0-9a-f-]{36} .*\bnumber=7"
    running.mesh.until(lambda: set(re.findall(logged, running.mesh.output())) == names)
    metrics = [
        json.loads(line)["_aws"]["CloudWatchMetrics"][0]
        for line in re.findall(r"\{.*\}$", running.mesh.output(), re.MULTILINE)
    ]
    assert metrics
    assert all(one["Namespace"] == "shop" and one["Metrics"][0]["Name"] == "asked" for one in metrics)


def test_embedded_metrics_and_boto3(tmp_path: Path) -> None:
    """A decorator that adds an argument and runs an event loop of its own; a table that is counted in."""
    import boto3
    from moto.server import ThreadedMotoServer

    shutil.copy(APPS / "metrics_dynamodb.py", tmp_path)
    names = ("hosted", "alone")
    (tmp_path / "mesh.toml").write_text(
        "".join(
            f'[services.{name}]\nlambda = "metrics_dynamodb:handler"\ntimeout = "20s"\n'
            f'environment = {{ TABLE = "counts" }}\n{PLACES[name]}'
            for name in names
        )
    )
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "eu-central-1",
    }  # fmt: skip
    mesh = Mesh(tmp_path / "mesh.toml", tmp_path / "state", access)
    try:
        client = boto3.client(
            "dynamodb", endpoint_url=access["AWS_ENDPOINT_URL"], region_name="eu-central-1",
            aws_access_key_id="x", aws_secret_access_key="x",
        )  # fmt: skip
        client.create_table(
            TableName="counts", BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
        )  # fmt: skip
        mesh.ready()
        for name in names:
            assert [invoke(mesh, name, {"key": name})["visits"] for _ in range(3)] == [1, 2, 3]
    finally:
        mesh.stop()
        server.stop()
    lines = [json.loads(line) for line in re.findall(r"\{.*\}$", mesh.output(), re.MULTILINE)]
    assert [line["counted"] for line in lines if "_aws" in line] == [1] * 6


def invoke(mesh: Mesh, name: str, event: Any) -> Any:
    with grpc.insecure_channel(mesh.addresses[name]) as channel:
        call = channel.unary_unary(
            f"/functions.v1.{name.title()}/Invoke",
            request_serializer=Value.SerializeToString, response_deserializer=Value.FromString,
        )  # fmt: skip
        return json_format.MessageToDict(call(json_format.ParseDict(event, Value()), timeout=30))


def test_the_table_of_the_page_has_the_versions_that_run_here() -> None:
    page = (ROOT / "docs/lambda.md").read_text()
    table = page.partition("<!-- frameworks -->")[2].partition("\n\n")[0]
    named = dict(re.findall(r"([A-Za-z][\w-]*) (\d+\.\d+\.\d+)", table))
    assert named.pop("chalice") == CHALICE
    assert named == {name: version(name) for name in named}
    assert {
        "mangum", "fastapi", "starlette", "aws-lambda-powertools", "flask", "apig-wsgi", "serverless-wsgi",
        "aws-embedded-metrics", "boto3",
    } <= set(named)  # fmt: skip
