# ruff: noqa: E501, ISC004 - a fault is one line, however long
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh import cli
from mesh.config import manifest
from mesh.control.supervise import trace_collector

HEAD = """\
syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Ordered { option (meshapi.v1.event) = { key: "id" }; string id = 1; }
"""
CONTRACT = """\
service Orders {
  option (meshapi.v1.service) = { calls: "shop.v1.Stock" publishes: "shop.v1.Ordered" };
  rpc Order(Ordered) returns (google.protobuf.Empty) { option (google.api.http) = { post: "/v1/orders" body: "*" }; }
}
service Stock { rpc Take(Ordered) returns (google.protobuf.Empty); }
service Mail {
  rpc Send(Ordered) returns (google.protobuf.Empty) { option (meshapi.v1.method) = { on: { event: {} } }; }
  rpc Keys(google.protobuf.Empty) returns (Ordered);
}
"""
MANIFEST = """\
[edge]
[services.orders]
module = "shop_orders"
serves = ["shop.v1.Orders"]
[services.stock]
module = "shop_stock"
serves = ["shop.v1.Stock"]
[services.mail]
module = "shop_mail"
serves = ["shop.v1.Mail"]
"""
AUTH = '[auth]\nissuer = "a"\naudience = "b"\njwks = "shop.v1.Mail/Keys"\nrevocations = "%s"\n'
WATCHED = 'import "meshapi/v1/revocations.proto";\n' + CONTRACT.replace(
    "rpc Keys(",
    "rpc Watch(google.protobuf.Empty) returns (stream meshapi.v1.RevocationUpdate) { option (meshapi.v1.method) = "
    "{ access: INTERNAL no_time_limit: true }; }\n  rpc Keys(",
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a project into a folder; returns the folder."""

    def make(contract: str = CONTRACT, manifest: str = MANIFEST) -> Path:
        (tmp_path / "protos/shop/v1").mkdir(parents=True)
        (tmp_path / "protos/shop/v1/shop.proto").write_text(HEAD + contract)
        (tmp_path / "mesh.toml").write_text(manifest)
        (tmp_path / "shop_orders.py").write_text("async def order(request, context): ...\n")
        (tmp_path / "shop_stock.py").write_text("def take(request, context): ...\n")
        (tmp_path / "shop_mail.py").write_text("def send(request, context): ...\ndef keys(request, context): ...\n")
        return tmp_path

    return make


def without_lines(text: str) -> str:
    """Faults of mesh.toml without line numbers, which tests/control/test_check.py tests."""
    return re.sub(r"mesh\.toml:\d+: \[", "mesh.toml [", text)


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert cli.main(["check", "--file", str(folder)]) == 1
    return without_lines(capsys.readouterr().err).splitlines()


def test_a_sound_project_is_ok(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--file", str(write())]) == 0
    assert capsys.readouterr().out == "ok: 3 services, 3 gRPC services, 4 methods, 1 HTTP routes, 1 events\n"


def test_certificates_that_a_database_needs_are_looked_for(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """By `mesh check`, and by the service itself; another process of the mesh may not have the file."""
    url = "postgres://u:s3cret@db/orders?sslmode=verify-full&sslrootcert=tls/ca.pem"
    folder = write(manifest=MANIFEST.replace('module = "shop_orders"', f'module = "shop_orders"\ndatabase = "{url}"'))
    (fault,) = check(folder, capsys)
    assert fault == (
        f"mesh.toml [services.orders] database: sslrootcert: {folder}/tls/ca.pem: no such file or directory"
    )
    manifest.load(folder / "mesh.toml", {})


CHANGE = "service Audit { rpc OnRow(meshapi.v1.Change) returns (google.protobuf.Empty) { option (meshapi.v1.method) = "
CHANGE += '{ on: { change: { service: "%s" table: "t" } } }; } }\n'


@pytest.mark.parametrize(
    ("contract", "manifest", "line"),
    [
        (
            CONTRACT,
            MANIFEST.replace("v1.Mail", "v1.Mial"),
            "mesh.toml [services.mail] serves: 'shop.v1.Mial' is no service of the contract; did you mean 'shop.v1.Mail'?",
        ),
        (
            CONTRACT,
            MANIFEST.replace('["shop.v1.Mail"]', '["shop.v1.Mail", "shop.v1.Stock"]'),
            "mesh.toml [services.mail] serves: 'shop.v1.Stock' is served by [services.stock] already",
        ),
        (
            CONTRACT,
            MANIFEST.replace('["shop.v1.Stock"]', '["shop.v1.Mail"]').replace("services.mail", "services.post"),
            "shop/v1/shop.proto:11: shop.v1.Orders calls it, and no service of mesh.toml serves it: "
            "add 'shop.v1.Stock' to the `serves` of one",
        ),
        (
            CONTRACT,
            MANIFEST.replace('["shop.v1.Orders"]', '["shop.v1.Mail"]').replace("services.mail", "services.post"),
            "shop/v1/shop.proto:7: it has the route POST /v1/orders, and no service of mesh.toml serves it: "
            "add 'shop.v1.Orders' to the `serves` of one",
        ),
        (
            CONTRACT,
            MANIFEST.replace('module = "shop_stock"', 'module = "shop_stock"\nlisten = "127.0.0.1:8080"'),
            "mesh.toml [edge] listen: 127.0.0.1:8080 is the address of [services.stock] already",
        ),
        (
            CONTRACT,
            '[auth]\nissuer = "a"\naudience = "b"\njwks = "shop.v1.Mail/Kes"\n' + MANIFEST,
            "mesh.toml [auth] jwks: 'shop.v1.Mail/Kes' is neither a URL nor a method of the contract; "
            "did you mean 'shop.v1.Mail/Keys'?",
        ),
        (
            CONTRACT,
            '[auth]\nissuer = "a"\naudience = "b"\njwks = "shop.v1.Stock/Take"\n' + MANIFEST,
            "mesh.toml [auth] jwks: shop.v1.Stock/Take must be a unary method whose request has no fields, "
            "and return a JWK set",
        ),
        (
            CONTRACT,
            AUTH % "shop.v1.Mail/Watsch" + MANIFEST,
            "mesh.toml [auth] revocations: 'shop.v1.Mail/Watsch' is no method of the contract; "
            "did you mean 'shop.v1.Mail/Keys'?",
        ),
        (
            CONTRACT,
            AUTH % "shop.v1.Mail/Keys" + MANIFEST,
            "mesh.toml [auth] revocations: shop.v1.Mail/Keys must return (stream meshapi.v1.RevocationUpdate), "
            "and its request must have no fields",
        ),
        (
            CONTRACT,
            AUTH % "shop.v1.Mail/Keys" + MANIFEST,
            "mesh.toml [auth] revocations: shop.v1.Mail/Keys must have access: INTERNAL: it names sessions and users",
        ),
        (
            WATCHED,
            AUTH % "shop.v1.Mail/Watch" + MANIFEST + "workers = { max = 2, concurrency = 2 }\n",
            "mesh.toml [auth] revocations: 4 components keep a call of shop.v1.Mail/Watch open, and the workers of mail "
            "take 4 calls; raise workers.max or workers.concurrency, or host it without workers",
        ),
        (
            CONTRACT + CHANGE % "nobody",
            MANIFEST,
            "shop/v1/shop.proto:16: shop.v1.Audit.OnRow: on.change names 'nobody', "
            "which is no service of mesh.toml (orders, stock, mail)",
        ),
        (
            CONTRACT + CHANGE % "stock",
            MANIFEST,
            "shop/v1/shop.proto:16: shop.v1.Audit.OnRow: on.change names 'stock', which has no database in mesh.toml",
        ),
        (
            CONTRACT.replace(
                "service Mail {", 'service Mail {\n  option (meshapi.v1.service) = { calls: "shop.v1.Orders" };'
            ),
            MANIFEST.replace('["shop.v1.Stock"]', '["shop.v1.Stock", "shop.v1.Mail"]').split("[services.mail]")[0],
            "mesh.toml [services.orders]: the services call each other in a cycle: orders → stock → orders; "
            "let one service serve all that call each other",
        ),
    ],
)
def test_each_fault_is_a_line_with_its_place(
    write: Write, contract: str, manifest: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = check(write(contract, manifest), capsys)
    assert line in lines


def test_a_missing_function_names_both(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write()
    (folder / "mesh.toml").write_text(MANIFEST.replace("shop_stock", "shop_nothing"))
    (folder / "shop_nothing.py").write_text("")
    (line,) = check(folder, capsys)
    assert "take" in line
    assert "shop.v1.Stock" in line


def test_graph_is_in_topological_order(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write())
    assert cli.main(["graph", "--file", folder]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line[0].isdigit()] == [
        "1. mail",
        "2. stock",
        "3. orders",
        "4. edge",
    ]
    assert cli.main(["graph", "--file", folder, "--format", "json"]) == 0
    picture = json.loads(capsys.readouterr().out)
    assert picture["layers"] == [["mail", "stock"], ["orders"]]
    assert picture["services"]["orders"]["needs"] == ["stock"]
    assert cli.main(["graph", "--file", folder, "--format", "mermaid"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "graph LR"
    assert {"n_edge --> n_orders", "n_orders --> n_stock", 'n_orders -. "shop.v1.Ordered" .-> n_mail'} <= set(lines)
    assert cli.main(["graph", "--file", folder, "--format", "dot"]) == 0
    out = capsys.readouterr().out
    assert '"orders" -> "stock";' in out
    assert out.startswith("digraph mesh {")
    assert out.endswith("}\n")


def test_a_cycle_of_calls_names_its_members(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    circle = CONTRACT.replace(
        "service Stock {", 'service Stock {\n  option (meshapi.v1.service) = { calls: "shop.v1.Orders" };'
    )
    assert cli.main(["graph", "--file", str(write(circle))]) == 1
    assert "the calls form a cycle: shop.v1.Orders → shop.v1.Stock → shop.v1.Orders" in without_lines(
        capsys.readouterr().err
    )


def test_a_circle_of_events_is_shown_and_legal(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    circle = CONTRACT.replace(
        "service Mail {", 'service Mail {\n  option (meshapi.v1.service) = { publishes: "shop.v1.Ordered" };'
    )
    folder = str(write(circle))
    assert cli.main(["graph", "--file", folder]) == 0
    assert "events can run in a cycle: mail → mail; each round counts as a hop" in capsys.readouterr().out
    assert cli.main(["graph", "--file", folder, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["event_cycle"] == ["mail", "mail"]


def test_variables_of_opentelemetry_that_are_ignored_are_said(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "jaeger")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")
    assert cli.main(["check", "--file", str(write())]) == 0
    said = without_lines(capsys.readouterr().err).splitlines()
    assert len([line for line in said if "OTEL_" in line]) == 2
    assert any(line.startswith("warning: 'jaeger' of OTEL_TRACES_EXPORTER is left out") for line in said)
    assert any(line.startswith("warning: OTEL_EXPORTER_OTLP_TIMEOUT is ignored: expected a number") for line in said)


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4318"}, ""),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp (OTEL_TRACES_EXPORTER)"),
        (
            {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"},
            "no exporter (OTEL_TRACES_EXPORTER)",
        ),
    ],
)
def test_the_store_of_traces_is_for_a_mesh_that_sends_them_nowhere(environ: dict[str, str], where: str) -> None:
    assert trace_collector.external_collector(environ) == where


def test_what_is_probably_not_meant_is_a_warning(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    public = " option (meshapi.v1.method) = { access: PUBLIC };"
    contract = CONTRACT.replace('body: "*" };', f'body: "*" }};{public}')
    auth = '[auth]\nissuer = "i"\naudience = "a"\njwks = "http://{}/keys"\n'
    folder = write(contract, MANIFEST + auth.format("issuer.example"))
    assert cli.main(["check", "--file", str(folder)]) == 0
    assert without_lines(capsys.readouterr().err).splitlines() == [
        "warning: mesh.toml [edge] rate_limit: anybody may call shop.v1.Orders/Order at any rate; set per_client, such as "
        '"20/s burst 100"',
        "warning: mesh.toml [auth] jwks: the keys of users' tokens come without TLS, so whoever is on the way can replace "
        "them; use https",
    ]
    limited = MANIFEST.replace("[edge]\n", '[edge]\nrate_limit = { per_client = "9/s" }\n')
    (folder / "mesh.toml").write_text(limited + auth.format("127.0.0.1:9"))
    assert cli.main(["check", "--file", str(folder)]) == 0
    assert without_lines(capsys.readouterr().err) == ""


def test_two_issuers_whose_users_may_be_one_are_a_warning(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    table = '[[auth.issuers]]\nissuer = "{}"\naudience = "a"\n'
    auth = table.format("https://i") + table.format("http://j.example")
    folder = write(CONTRACT, MANIFEST + auth)
    assert cli.main(["check", "--file", str(folder)]) == 0
    assert without_lines(capsys.readouterr().err).splitlines() == [
        "warning: mesh.toml [[auth.issuers]] 2 issuer: the keys of users' tokens come without TLS, so whoever is on the way "
        "can replace them; use https",
        "warning: mesh.toml [[auth.issuers]] 2 subject_prefix: the same subject is the same user as of [[auth.issuers]] 1; "
        "set another one unless that is meant",
    ]
    (folder / "mesh.toml").write_text(MANIFEST + auth.replace("http:", "https:") + 'subject_prefix = "j:"\n')
    assert cli.main(["check", "--file", str(folder)]) == 0
    assert without_lines(capsys.readouterr().err) == ""


def test_the_method_of_each_issuer_is_checked(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(CONTRACT, MANIFEST + '[[auth.issuers]]\nissuer = "i"\naudience = "a"\njwks = "a.B/C"\n')
    assert cli.main(["check", "--file", str(folder)]) == 1
    assert "mesh.toml [[auth.issuers]] 1 jwks: 'a.B/C' is neither a URL nor a method" in without_lines(
        capsys.readouterr().err
    )
