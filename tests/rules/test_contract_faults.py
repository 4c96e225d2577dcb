"""Faults of rules, each with its file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mesh
from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.faults import Faults
from mesh.rules.buf_lint import lint_faults
from mesh.rules.contract_faults import rule_faults
from mesh.rules.message_checks import request_check

HEAD = """syntax = "proto3";
package a.v1;
import "buf/validate/validate.proto";
import "google/api/field_behavior.proto";
import "google/api/annotations.proto";
"""
Load = Callable[[str], Contract]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def one(source: str) -> Contract:
        (tmp_path / "protos").mkdir(exist_ok=True)
        (tmp_path / "protos" / "a.proto").write_text(HEAD + source)
        return loader.read(protoc.load([tmp_path / "protos"], tmp_path / "gen"))

    return one


def found(contract: Contract) -> list[str]:
    return [str(fault) for fault in sorted(rule_faults(contract))]


def test_the_sample_and_the_tests_have_none(contract: Contract) -> None:
    assert rule_faults(contract) == []


def test_every_wrong_rule_has_its_line(load: Load) -> None:
    contract = load("""
message Fields {
  string fine = 1 [(buf.validate.field).string.min_len = 2];
  string type = 2 [(buf.validate.field).int32.gt = 3];
  string pattern = 3 [(buf.validate.field).string.pattern = "(a"];
  string syntax = 4 [(buf.validate.field).cel = {id: "x" expression: "this.foo("}];
  string operator = 5 [(buf.validate.field).cel = {id: "y" expression: "this + 1"}];
  string result = 6 [(buf.validate.field).cel = {id: "z" expression: "size(this)"}];
  repeated string items = 7 [(buf.validate.field).repeated.items.int32.gt = 5];
}
message Outer {
  message Inner {
    option (buf.validate.message).cel = {id: "m" message: "m" expression: "this.nope < this.b"};
    int32 b = 1;
  }
  Inner inner = 1;
}
message Oneof {
  option (buf.validate.message).oneof = {fields: ["a", "q"]};
  string a = 1;
}
""")
    lines = found(contract)
    assert sorted(int(line.split(":")[1]) for line in lines) == [9, 10, 11, 12, 13, 14, 17, 23]
    text = "\n".join(lines)
    for part in (
        'Fields.type is wrong: expected rule "buf.validate.FieldRules.string", got "buf.validate.FieldRules.int32"',
        "Fields.pattern is wrong: failed to compile program string.pattern: missing ): (a",
        "Fields.syntax is wrong: failed to compile expression x: ERROR: <input>:1:10: Syntax error",
        "Fields.operator is wrong: error evaluating y: No matching overloads found : _+_(string, int64)",
        "Fields.result is wrong: expression z outputs an unexpected type, wanted either bool or string",
        "Fields.items is wrong: failed to compile items rules for repeated",
        "Outer.Inner is wrong: error evaluating m: no_such_field : nope",
        "Oneof is wrong: field q not found in message a.v1.Oneof",
    ):
        assert part in text


def test_buf_finds_what_only_certain_messages_show(load: Load) -> None:
    contract = load("""
message Inner { string s = 1; }
message M {
  Inner unset = 1 [(buf.validate.field).cel = {id: "x" message: "m" expression: "this.nope == 1"}];
  int32 never = 2 [(buf.validate.field).int32 = {gt: 5 lt: 5}];
  string redundant = 3 [(buf.validate.field) = {ignore: IGNORE_ALWAYS string: {min_len: 2}}];
  int32 outside = 4 [(buf.validate.field).int32 = {gt: 5 lt: 3}];
}
""")
    assert rule_faults(contract) == []
    assert [str(fault) for fault in lint_faults(contract.files)] == [
        (
            'a.proto:9: buf lint: (buf.validate.field).cel.expression on field "unset" fails to compile: '
            "undefined field 'nope'"
        ),
        (
            'a.proto:10: buf lint: Field "never" has equal (buf.validate.field).int32.gt and '
            "(buf.validate.field).int32.lt. All values are rejected by these checks."
        ),
    ]
    assert len(lint_faults(contract.files, {"a.proto:9"})) == 1


def test_the_start_refuses_a_wrong_rule_of_a_request(load: Load) -> None:
    contract = load("""
message Item { string name = 1 [(buf.validate.field).string.pattern = "(a"]; }
message Request { repeated Item items = 1; }
service S { rpc Add(Request) returns (Request); }
""")
    with pytest.raises(Faults) as caught:
        request_check(contract.services["a.v1.S"].methods["Add"])
    assert str(caught.value) == (
        "a.proto:9: a rule of a.v1.Item cannot be compiled: failed to compile program string.pattern: missing ): (a"
    )


def test_an_output_only_field_may_not_have_to_be_set(load: Load) -> None:
    contract = load("""
message Item {
  string id = 1 [(google.api.field_behavior) = OUTPUT_ONLY, (buf.validate.field).string.uuid = true];
  string other = 2 [(google.api.field_behavior) = OUTPUT_ONLY, (buf.validate.field) = {
    ignore: IGNORE_IF_ZERO_VALUE string: {uuid: true} }];
  string path = 3 [(google.api.field_behavior) = OUTPUT_ONLY, (buf.validate.field).string.min_len = 1];
}
message Request { Item item = 1; }
message Response { string id = 3 [(google.api.field_behavior) = OUTPUT_ONLY, (buf.validate.field).string.min_len = 1]; }
service S {
  rpc Add(Request) returns (Response);
  rpc Change(Request) returns (Response) { option (google.api.http) = {patch: "/v1/items/{item.path}" body: "item"}; }
}
""")
    assert found(contract) == [
        (
            "a.proto:8: a.v1.Item.id is OUTPUT_ONLY, so requests of a.v1.S.Add do not have it, but its rule "
            "string.uuid_empty refuses the empty value; add ignore: IGNORE_IF_ZERO_VALUE"
        )
    ]


def test_a_rule_changes_with_its_contract(load: Load) -> None:
    """Types of two contracts may have one name."""
    for length in (2, 4, 3):
        contract = load(f"message M {{ string s = 1 [(buf.validate.field).string.min_len = {length}]; }}")
        message = contract.message("a.v1.M")
        mesh.validate(message(s="x" * length))
        with pytest.raises(mesh.InvalidArgument, match=f"must be at least {length} characters"):
            mesh.validate(message(s="x" * (length - 1)))


def test_a_required_field_of_proto2_is_missing(tmp_path: Path) -> None:
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "b.proto").write_text("""syntax = "proto2";
package b.v1;
import "buf/validate/validate.proto";
message M {
  option (buf.validate.message).cel_expression = "this.n > 1";
  required int32 n = 1;
}
""")
    contract = loader.read(protoc.load([tmp_path / "protos"], tmp_path / "gen"))
    assert rule_faults(contract) == []
    message = contract.message("b.v1.M")
    mesh.validate(message(n=2))
    for bad, rule in ((message(), "required"), (message(n=1), "this.n > 1")):
        with pytest.raises(mesh.InvalidArgument) as caught:
            mesh.validate(bad)
        (violation,) = caught.value.details[0].field_violations
        assert violation.reason == rule


def test_the_keys_of_a_secret_map_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "d.proto").write_text("""syntax = "proto3";
package d.v1;
import "buf/validate/validate.proto";
import "google/api/field_behavior.proto";
message M {
  map<string, N> secret = 1 [debug_redact = true];
  map<string, N> open = 2;
  repeated N list = 3 [debug_redact = true];
}
message N {
  string a = 1 [(google.api.field_behavior) = REQUIRED];
  map<string, string> b = 2 [debug_redact = true, (buf.validate.field).map.keys.string.max_len = 1];
}
""")
    message = loader.read(protoc.load([tmp_path / "protos"], tmp_path / "gen")).message("d.v1.M")
    bad = {"b": {"s3cret": ""}}
    with pytest.raises(mesh.InvalidArgument) as caught:
        mesh.validate(message(secret={"s3cret": bad}, open={"key": bad}, list=[bad]))
    assert "s3cret" not in str(caught.value)
    assert {one.field for one in caught.value.details[0].field_violations} == {
        f"{place}.{field}" for place in ("secret[REDACTED]", 'open["key"]', "list[0]") for field in ("a", "b[REDACTED]")
    }


def test_the_stubs_have_the_module_of_the_rules_only_if_the_contract_imports_it(tmp_path: Path) -> None:
    (tmp_path / "protos").mkdir()
    file = tmp_path / "protos" / "c.proto"
    file.write_text('syntax = "proto3"; package c.v1; message M {}')
    protoc.generate([tmp_path / "protos"], tmp_path / "gen")
    assert not (tmp_path / "gen" / "buf").exists()
    file.write_text('syntax = "proto3"; package c.v1; import "buf/validate/validate.proto"; message M {}')
    protoc.generate([tmp_path / "protos"], tmp_path / "gen2")
    assert (tmp_path / "gen2" / "buf" / "validate" / "validate_pb2.py").is_file()
    own = tmp_path / "protos" / "buf" / "validate"
    own.mkdir(parents=True)
    (own / "validate.proto").write_text('syntax = "proto3"; package buf.validate; message OfTheUser {}')
    protoc.generate([tmp_path / "protos"], tmp_path / "gen3")
    assert "OfTheUser" in (tmp_path / "gen3" / "buf" / "validate" / "validate_pb2.pyi").read_text()
