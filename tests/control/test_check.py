# ruff: noqa: E501, ISC004 - a fault is one line, however long
"""``mesh check`` of a project with many mistakes: one line for each, with file and line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import cli

MANIFEST = """\
# The deployment.
protos = ["protos"]
chanel = "ngh2"

[edge]
listen = "127.0.0.1:8080"
max_body = "4 megabytes"

[services.ten_orders]
module = "ten_orders"
serves = ["ten.v1.Orders", "ten.v1.Odrers"]
concurrency = 0
migrations = "migrations"

[services.ten_mail]
module = "ten_mail"
serves = [
    "ten.v1.Mail",
    7,
]
"""
ORDERS = """\
syntax = "proto3";
package ten.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";

message Order { string id = 1; }
message GetOrderRequest { string id = 1; }

service Orders {
  rpc GetOrder(GetOrderRequest) returns (Order) {
    option (google.api.http) = { get: "/v1/orders/{name}" };
  }
  rpc ListOrders(GetOrderRequest) returns (stream Order);
  rpc AddOrders(stream Order) returns (Order);
  rpc DeleteOrder(GetOrderRequest) returns (google.protobuf.Empty);
  rpc OnOrder(Order) returns (google.protobuf.Empty) { option (meshapi.v1.method) = { on: { event: {} } }; }
}
"""
FUNCTIONS = """\
from collections.abc import AsyncIterator, Iterator

from google.protobuf.empty_pb2 import Empty
from ten.v1 import orders_pb2 as pb

from mesh import Context


async def get_order(request: pb.Order, context: Context) -> int:
    return 1


async def list_orders(request: pb.GetOrderRequest, context: Context) -> AsyncIterator[pb.GetOrderRequest]:
    yield request


async def add_orders(requests: Iterator[pb.Order], context: Context) -> pb.Order:
    return await _stored(context)


async def _stored(context: Context) -> pb.Order:
    async with context.transaction() as tx:
        await tx.publish(pb.Order())
    return pb.Order()


async def on_order(request: pb.Order, context: Context) -> Empty:
    return Empty()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before[0]:
        if name.startswith("ten"):
            del sys.modules[name]
    sys.path[:] = before[1]


def write(folder: Path, files: dict[str, str], package: str = "ten") -> None:
    """Write files. Each test has a package of its own: protobuf refuses two files of one name in a process."""
    for name, text in files.items():
        path = folder / re.sub(r"\bten(?=[._/])", package, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"\bten(?=[._/])", package, text))


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = cli.main(["check", "--file", str(folder)])
    return code, [line.replace(f"{folder}/", "") for line in capsys.readouterr().err.splitlines()]


def test_every_fault_of_manifest_contract_and_functions_is_a_line_of_one_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, {
        "mesh.toml": MANIFEST,
        "protos/ten/v1/orders.proto": ORDERS,
        "protos/ten/v1/mail.proto": 'syntax = "proto3";\npackage ten.v1;\nservice Mail {\n  rpc Send(Nothing) returns (Nothing);\n}\n',
        "ten_orders.py": FUNCTIONS,
        "ten_mail.py": "from ten.v1 import mail_pb2\n",
    })  # fmt: skip
    code, lines = check(folder, capsys)
    assert code == 1
    assert sorted(line.split(": ")[0] for line in lines) == sorted([
        "mesh.toml:3", "mesh.toml:7", "mesh.toml:12", "mesh.toml:13", "mesh.toml:17",
        "protos/ten/v1/mail.proto:4",
        "ten/v1/orders.proto:11", "ten/v1/orders.proto:17",
        "ten_orders.py:1", "ten_orders.py:9", "ten_orders.py:9", "ten_orders.py:13",
        "ten_orders.py:17", "ten_orders.py:22", "ten_orders.py:23",
    ])  # fmt: skip
    text = "\n".join(lines)
    for part in (
        "mesh.toml:3: unknown key 'chanel'; did you mean 'channel'?",
        "mesh.toml:7: [edge] max_body: expected a size",
        "mesh.toml:12: [services.ten_orders] concurrency: must be at least 1, not 0",
        "mesh.toml:17: [services.ten_mail] serves: expected str, got int",
        "there is no function 'delete_order' for ten.v1.Orders/DeleteOrder (ten/v1/orders.proto:16)",
        "get_order takes ten.v1.Order, and ten.v1.Orders/GetOrder (ten/v1/orders.proto:11) gives it "
        "ten.v1.GetOrderRequest",
        "get_order returns int, and ten.v1.Orders/GetOrder (ten/v1/orders.proto:11) answers with ten.v1.Order",
        "list_orders yields AsyncIterator[ten.v1.GetOrderRequest], and",
        "answers with AsyncIterator[ten.v1.Order]",
        "add_orders takes Iterator[ten.v1.Order], and",
        "_stored begins a transaction, and [services.ten_orders] of mesh.toml has no database; set database = ",
        "_stored publishes an event for [services.ten_orders] of mesh.toml, and",
    ):
        assert part in text


def test_a_service_of_the_contract_that_is_missing_is_a_fault_if_every_file_is_valid(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = ORDERS.replace("{name}", "{id}").replace(
        "message Order {", "message Order { option (meshapi.v1.event) = {};"
    )
    write(folder, {
        "mesh.toml": '[services.ten_orders]\nmodule = "ten_orders"\nserves = ["ten.v1.Orders", "ten.v1.Odrers"]\n',
        "protos/ten/v1/orders.proto": valid,
        "ten_orders.py": "async def get_order(request, context): ...\n",
    }, "ten1")  # fmt: skip
    code, lines = check(folder, capsys)
    assert code == 1
    fault = (
        "mesh.toml:3: [services.ten1_orders] serves: 'ten1.v1.Odrers' is no service of the contract; "
        "did you mean 'ten1.v1.Orders'?"
    )
    assert fault in lines
    assert len(lines) == 5


def test_missing_modules_and_wrong_urls_of_databases_have_the_line_of_their_key(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = """\
[services.ten_orders]
module = "ten_ordres"
serves = ["ten.v1.Orders"]
database = "mysql://127.0.0.1/orders"

[services.ten_hook]
lambda = "ten_hooks:handler"
"""
    write(folder, {"mesh.toml": manifest, "protos/ten/v1/orders.proto": ORDERS.replace("{name}", "{id}")}, "ten6")
    code, lines = check(folder, capsys)
    assert code == 1
    for expected in (
        "mesh.toml:2: [services.ten6_orders] module: there is no module 'ten6_ordres' where Python looks for it",
        "mesh.toml:4: [services.ten6_orders] database: expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME",
        "mesh.toml:7: [services.ten6_hook] lambda: there is no module 'ten6_hooks' where Python looks for it",
    ):
        assert expected in lines


def test_a_missing_import_root_and_a_table_with_a_wrong_name_have_their_lines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = 'chanel = 1\nprotos = ["nowhere"]\n\n[edge]\n\n[servces.ten_orders]\nmodule = "ten"\n'
    write(folder, {"mesh.toml": manifest})
    assert check(folder, capsys) == (1, [
        "mesh.toml:1: unknown key 'chanel'; did you mean 'channel'?",
        "mesh.toml:2: protos: nowhere: this import root of `protos` is not a folder",
        "mesh.toml:6: unknown key 'servces'; did you mean 'services'?",
    ])  # fmt: skip


def test_json_of_a_project_without_faults_is_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, {
        "mesh.toml": "[edge]\n",
        "protos/ten/v1/orders.proto": 'syntax = "proto3";\npackage ten.v1;\nmessage Order {}\n',
    }, "ten7")  # fmt: skip
    assert cli.main(["check", "--file", str(folder), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"faults": []}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[edge]\nlisten = "127.0.0.1:8080\n[services.a]\n', 2, "Illegal character"),
        ("[edge]\ncors = [\n  'a',\n[services.a]\n", 4, "in the statement that begins in line 2"),
        ("[edge]\n\ncors = [\n  'a',\n", 3, "in the statement that begins here"),
        ('[edge]\nname = """\n\n\n', 2, "in the statement that begins here"),
        ("[edge]\nlisten = 1\nlisten = 2\n", 3, "Cannot overwrite a value"),
    ],
)
def test_what_is_not_toml_has_its_line(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, what: str
) -> None:
    write(folder, {"mesh.toml": text})
    code, [found] = check(folder, capsys)
    assert code == 1
    assert found.startswith(f"mesh.toml:{line}: not TOML: ")
    assert what in found


def test_annotations_that_say_nothing_or_cannot_be_evaluated_are_no_faults(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = ORDERS.replace("{name}", "{id}").replace(
        "message Order {", "message Order { option (meshapi.v1.event) = {};"
    )
    write(folder, {
        "mesh.toml": '[services.ten_orders]\nmodule = "ten_orders"\nserves = ["ten.v1.Orders"]\n',
        "protos/ten/v1/orders.proto": valid,
        "ten_orders.py": """\
from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from google.protobuf.message import Message
from ten.v1 import orders_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.empty_pb2 import Empty
    from mesh import Context

T = TypeVar("T")


class HasId(Protocol):
    id: str


def get_order(request: Annotated[pb.GetOrderRequest, "the request"], context: Context) -> pb.Order | None:
    return pb.Order()


async def list_orders(request: HasId, context: object) -> AsyncGenerator[pb.Order, None]:
    yield pb.Order()


def add_orders(requests: Iterable[pb.Order], context) -> Message:
    return pb.Order()


def delete_order(request: T, context: Any) -> Empty:
    raise NotImplementedError


def on_order(request: Any, context: Any) -> Any: ...
""",
    }, "ten2")  # fmt: skip
    code, lines = check(folder, capsys)
    assert [line for line in lines if not line.startswith("warning")] == []
    assert code == 0


def test_methods_for_users_without_issuers_of_tokens_are_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, {
        "mesh.toml": '[services.ten_orders]\nmodule = "ten_orders"\nserves = ["ten.v1.Orders"]\n',
        "protos/ten/v1/orders.proto": 'syntax = "proto3";\npackage ten.v1;\nmessage M {}\nservice Orders { rpc Get(M) returns (M); }\n',
        "ten_orders.py": "def get(request, context): ...\n",
    }, "ten3")  # fmt: skip
    assert check(folder, capsys) == (0, [
        "warning: ten3/v1/orders.proto:4: every user is refused by ten3.v1.Orders/Get; add [auth] to mesh.toml, or declare "
        "another access"
    ])  # fmt: skip
