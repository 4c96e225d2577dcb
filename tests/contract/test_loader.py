"""Contract loader: every kind of fault with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.contract import loader, protoc
from mesh.contract.model import Access, Contract, EventTrigger, Hedge
from mesh.faults import Faults

HEAD = """syntax = "proto3";
package t.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Req { string id = 1; repeated string many = 2; Inner inner = 3; map<string, string> labels = 4; }
message Inner { string name = 1; }
message Seen { option (meshapi.v1.event) = { key: "id" }; string id = 1; }
"""


def read(tmp_path: Path, body: str, head: str = HEAD) -> Contract:
    root = tmp_path / "protos"
    root.mkdir(exist_ok=True)
    (root / "t.proto").write_text(head + body)
    return loader.read(protoc.load([root], tmp_path / "gen"))


def faults(tmp_path: Path, body: str, head: str = HEAD) -> list[str]:
    with pytest.raises(Faults) as caught:
        read(tmp_path, body, head)
    return [str(fault) for fault in caught.value.faults]


def service(rule: str, request: str = "Req", options: str = "") -> str:
    return (
        f"service S {{ {options}\n"
        f"  rpc Do({request}) returns (google.protobuf.Empty) {{\n    {rule}\n  }}\n}}\n"
    )  # fmt: skip


def http(rule: str) -> str:
    return f"option (google.api.http) = {{ {rule} }};"


def mesh(rule: str) -> str:
    return f"option (meshapi.v1.method) = {{ {rule} }};"


SAFE = "option idempotency_level = IDEMPOTENT;"

CASES = {
    "unknown field in a path": (service(http('get: "/v1/{nope}"')), "'nope' is not a field (fields: id, many, inner"),
    "unknown nested field": (service(http('get: "/v1/{inner.nope}"')), "'nope' is not a field (fields: name)"),
    "path through a scalar": (service(http('get: "/v1/{id.x}"')), "'x' is not a field (it is no message)"),
    "repeated field in a path": (service(http('get: "/v1/{many}"')), "'many' is repeated"),
    "message in a path": (service(http('get: "/v1/{inner}"')), "which is a message; name one of its fields"),
    "no path": (service(http('body: "*"')), "an HTTP rule without a path"),
    "path that does not parse": (service(http('get: "/v1/{id"')), "the variable 'id' is not closed"),
    "unknown body": (service(http('post: "/v1/x" body: "nope"')), "body 'nope' is not a field of t.v1.Req"),
    "unknown response body": (
        service(http('get: "/v1/x" response_body: "nope"')),
        "response_body 'nope' is not a field of google.protobuf.Empty (fields: none)",
    ),
    "a verb that is none": (
        service(http('custom: { kind: "" path: "/v1/x" }')),
        "custom kind must be an HTTP method in upper case, or '*', not ''",
    ),
    "two members of a oneof in a path": (
        "message One { oneof kind { string a = 1; string b = 2; } }\n" + service(http('get: "/v1/{a}/{b}"'), "One"),
        "the path template names 'b' and 'a', of which only one can be set",
    ),
    "bindings in bindings": (
        service(http('get: "/v1/x" additional_bindings { get: "/v1/y" additional_bindings { get: "/v1/z" } }')),
        "additional_bindings of an additional binding have no effect",
    ),
    "a field from two places": (
        service(http('post: "/v1/{id}" body: "id"')),
        "'id' is in the path and is the body; it can come from one place",
    ),
    "a success that is none": (
        service(http('get: "/v1/x"') + mesh("success_status: 302")),
        "success_status must be from 200 to 299, not 302",
    ),
    "a success without a route": (
        service(mesh("success_status: 201")),
        "success_status is an HTTP status, and the method has no google.api.http",
    ),
    "a message without a body": (
        service(http('get: "/v1/x"') + mesh("success_status: 204")).replace("google.protobuf.Empty", "Req"),
        "success_status 204 has no body; return google.protobuf.Empty, not t.v1.Req",
    ),
    "internal with a route": (
        service(http('get: "/v1/x"') + mesh("access: INTERNAL")),
        "an INTERNAL method is never reached through the edge",
    ),
    "roles without a user": (service(mesh('access: PUBLIC roles: "admin"')), "roles narrow AUTHENTICATED; with PUBLIC"),
    "roles with a key": (service(mesh('access: KEY roles: "admin"')), "roles narrow AUTHENTICATED; with KEY"),
    "scopes without a key": (service(mesh('scopes: "read"')), "scopes are those of API keys; with AUTHENTICATED they"),
    "a scope with spaces": (service(mesh('access: KEY scopes: "a b"')), "a scope is a word without spaces, such as"),
    "a scope of nothing": (service(mesh('access: KEY scopes: ""')), "a scope is a word without spaces, such as"),
    "timeout not positive": (
        service(mesh("timeout: { seconds: -1 }")),
        "timeout must be positive, not -1 s; for no limit say no_time_limit: true",
    ),
    "timeout of nothing": (service(mesh("timeout: {}")), "timeout must be positive, not 0 s; for no limit say"),
    "timeout and none": (
        service(mesh("timeout: { seconds: 1 } no_time_limit: true")),
        "timeout and no_time_limit exclude each other; keep one of them",
    ),
    "hedge of a method that changes something": (
        service(mesh("hedge: { delay: { nanos: 1000000 } }")),
        "hedge sends a call more than once; declare idempotency_level = NO_SIDE_EFFECTS or IDEMPOTENT, or remove hedge",
    ),
    "hedge of a stream": (
        service(SAFE + mesh("hedge: { delay: { nanos: 1000000 } }"), "stream Req"),
        "only a unary method can have hedge",
    ),
    "hedge without a delay": (
        service(SAFE + mesh("hedge: {}")),
        "hedge.delay must be positive, not 0 s, as in { nanos: 50000000 }",
    ),
    "hedge with one attempt": (
        service(SAFE + mesh("hedge: { delay: { seconds: 1 } max_attempts: 1 }")),
        "hedge.max_attempts must be from 2 to 5, not 1",
    ),
    "event that is none": (service(mesh("on: { event: {} }")), "t.v1.Req is none; mark it with"),
    "schedule without a tick": (
        service(mesh('on: { schedule: "@daily" }')),
        "needs meshapi.v1.Tick as its request type",
    ),
    "cron that does not parse": (
        service(mesh('on: { schedule: "61 * * * *" }'), "meshapi.v1.Tick"),
        "minute must be 0-59, not '61'",
    ),
    "change without a change": (
        service(mesh('on: { change: { service: "a" table: "b" } }')),
        "needs meshapi.v1.Change as its request type",
    ),
    "change without a table": (
        service(mesh('on: { change: { service: "a" } }'), "meshapi.v1.Change"),
        "needs both a service and a table",
    ),
    "empty trigger": (service(mesh("on: { }")), "an empty trigger"),
    "trigger of a stream": (
        service(mesh("on: { event: {} }"), "stream Seen"),
        "only a unary method can have a trigger",
    ),
    "call of nobody": (
        service("", options='option (meshapi.v1.service) = { calls: "t.v1.Nobody" };'),
        "calls 't.v1.Nobody', which is no service of the contract",
    ),
    "publishing of no event": (
        service("", options='option (meshapi.v1.service) = { publishes: "t.v1.Req" };'),
        "publishes 't.v1.Req', which is no event",
    ),
    "key of an event": (
        'message E { option (meshapi.v1.event) = { key: "nope" }; string a = 1; }\n',
        "key 'nope' is not one of its fields (fields: a)",
    ),
    "key that is many": (
        'message E { option (meshapi.v1.event) = { key: "a" }; repeated string a = 1; }\n',
        "key 'a' must be a single scalar field",
    ),
}


@pytest.mark.parametrize(("body", "text"), CASES.values(), ids=CASES)
def test_a_fault_is_one_line_with_its_place(tmp_path: Path, body: str, text: str) -> None:
    found = faults(tmp_path, body)
    assert len(found) == 1
    assert text in found[0]
    assert "\n" not in found[0]
    assert found[0].startswith("t.proto:")
    assert int(found[0].split(":")[1]) > HEAD.count("\n")


def test_hedge(tmp_path: Path) -> None:
    rules = (SAFE + mesh("hedge: { delay: { nanos: 30000000 } }"), SAFE)
    hedges = [read(tmp_path, service(rule)).services["t.v1.S"].methods["Do"].hedge for rule in rules]
    assert hedges == [Hedge(0.03, 2), None]


def test_two_methods_on_one_route(tmp_path: Path) -> None:
    body = """service S {
  rpc A(Req) returns (Req) { option (google.api.http) = { get: "/v1/{id}" }; }
  rpc B(Req) returns (Req) { option (google.api.http) = { get: "/v1/{inner.name}" }; }
  rpc C(Req) returns (Req) { option (google.api.http) = { post: "/v1/{id}" }; }
}
"""
    assert faults(tmp_path, body) == [
        "t.proto:11: t.v1.S.B: GET /v1/{inner.name} is already the route of t.v1.S.A (GET /v1/{id})"
    ]


def test_a_cycle_names_its_members(tmp_path: Path) -> None:
    body = "".join(
        f'service {name} {{ option (meshapi.v1.service) = {{ calls: "t.v1.{needs}" }}; }}\n'
        for name, needs in (("A", "B"), ("B", "C"), ("C", "A"))
    )
    assert faults(tmp_path, body) == [
        "t.proto:9: the calls form a cycle: t.v1.A → t.v1.B → t.v1.C → t.v1.A; replace one of them by an event"
    ]


def test_all_faults_at_once(tmp_path: Path) -> None:
    body = service(http('get: "/v1/{nope}"') + mesh('on: { schedule: "x" }'))
    assert len(faults(tmp_path, body)) == 3


def test_what_protoc_refuses_has_file_and_line(tmp_path: Path) -> None:
    found = faults(tmp_path, "message Broken { string a = 1; string b = 1; }\n")
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path}/protos/t.proto:9: ")
    assert "number 1 has already been used" in found[0]


def test_what_a_contract_says(tmp_path: Path) -> None:
    contract = read(
        tmp_path,
        """// What it is for.
service S {
  option (meshapi.v1.service) = { calls: "t.v1.Other" publishes: "t.v1.Seen" };
  // Gets one.
  rpc Get(Req) returns (Inner) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = {
      get: "/v1/{id}"
      additional_bindings { custom: { kind: "LIST" path: "/v1:all" } response_body: "name" }
    };
    option (meshapi.v1.method) = { roles: "admin" timeout: { seconds: 1 nanos: 500000000 } };
  }
  rpc Watch(Req) returns (stream Inner) { option (meshapi.v1.method) = { access: PUBLIC }; }
}
service Other {
  rpc OnSeen(Seen) returns (google.protobuf.Empty) { option (meshapi.v1.method) = { on: { event: {} } }; }
  rpc OnSeenOrCalled(Seen) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { event: {} } access: INTERNAL };
  }
  rpc Tick(meshapi.v1.Tick) returns (google.protobuf.Empty) {
    option (google.api.http) = { post: "/v1/tick" };
    option (meshapi.v1.method) = { on: { schedule: "0 3 * * *" } };
  }
}
""",
    )
    one = contract.services["t.v1.S"]
    assert (one.comment, one.calls, one.publishes) == ("What it is for.", ("t.v1.Other",), ("t.v1.Seen",))
    get = one.methods["Get"]
    assert (get.path, get.kind, get.comment) == ("/t.v1.S/Get", "unary_unary", "Gets one.")
    assert (get.access, get.roles, get.timeout, get.idempotent) == (
        Access.AUTHENTICATED,
        frozenset({"admin"}),
        1.5,
        True,
    )
    assert [str(route) for route in get.routes] == ["GET /v1/{id}", "LIST /v1:all"]
    assert get.routes[1].response_body == "name"
    assert one.methods["Watch"].kind == "unary_stream"
    seen = contract.services["t.v1.Other"].methods["OnSeen"]
    assert (seen.access, seen.triggers_only) == (Access.INTERNAL, True)
    assert [(trigger, str(trigger)) for trigger in seen.triggers] == [(EventTrigger("t.v1.Seen"), "event t.v1.Seen")]
    tick = contract.services["t.v1.Other"].methods["Tick"]
    assert (tick.access, tick.triggers_only) == (Access.AUTHENTICATED, False)
    declared = contract.services["t.v1.Other"].methods["OnSeenOrCalled"]
    assert (declared.access, declared.triggers_only) == (Access.INTERNAL, False)
    assert contract.events["t.v1.Seen"].key == "id"
    assert contract.method("/t.v1.S/Get") is get
    assert contract.method("/t.v1.S/Nope") is None
    assert contract.message("t.v1.Inner")(name="x").SerializeToString() == b"\n\x01x"


def test_generating_again_does_nothing_until_a_source_changes(tmp_path: Path) -> None:
    root, out = tmp_path / "protos", tmp_path / "gen"
    read(tmp_path, service(""))
    assert not protoc.generate([root], out)
    (root / "t.proto").write_text(HEAD + service("// new"))
    assert protoc.generate([root], out)
    assert not protoc.generate([root], out)
    assert protoc.generate([root], out, force=True)
    assert (out / "t_pb2.py").is_file()
    assert (out / "t_pb2.pyi").is_file()
    assert (out / "t_pb2_grpc.py").is_file()
    assert (out / "meshapi" / "v1" / "annotations_pb2.py").is_file()


def test_roots_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(Faults, match="is not a folder"):
        protoc.generate([tmp_path / "nope"], tmp_path / "gen")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Faults, match=r"there is no \.proto file"):
        protoc.generate([tmp_path / "empty"], tmp_path / "gen")


def test_protos_of_installed_packages_are_not_the_users(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "x").mkdir(parents=True)
    (tmp_path / ".venv" / "x" / "other.proto").write_text("not even a proto")
    (tmp_path / "mine.proto").write_text('syntax = "proto3"; package mine; message M {}')
    assert [name for _, name in protoc.sources([tmp_path])] == ["mine.proto"]


def test_a_file_below_two_roots_belongs_to_the_inner_one(tmp_path: Path) -> None:
    inner = tmp_path / "vendor"
    (inner / "a").mkdir(parents=True)
    (inner / "a" / "a.proto").write_text('syntax = "proto3";')
    assert protoc.sources([tmp_path, inner]) == [(inner, "a/a.proto")]
