# ruff: noqa: E501 - a list is one line
"""Verdicts beside those of ``buf breaking`` (category WIRE_JSON): where both speak, they agree but for a list."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
from compiled_contract import compiled
from test_breaks import CASES, SHOP, changed_text

from mesh.contract import loader
from mesh.contract.breaks.comparison import breaks

BUF = Path(sys.executable).parent / "buf"
BUF_REFUSES = {
    "a oneof is renamed": "its name is in no form",
    "a field into a new oneof": "it excludes no field that was there",
    "no side effects": "more is promised than before",
    "retry safety is added": "more is promised than before",
    "an enum with another name": "its name is in no form",
}
"""Changes that break nobody, and that buf refuses."""
BUF_PASSES = {
    "an unsigned integer": "negative values become large ones, and JSON refuses them",
    "a value gets another first name": "JSON prints the first name of a value",
    "a field of a request is removed and reserved": "JSON that has it is refused",
    "a value of a request is removed and reserved": "JSON that has it is refused",
}
"""Changes of messages that break somebody, and that buf passes."""
OURS = [
    "SERVICE_REMOVED",
    "METHOD_REMOVED",
    "ROUTE_REMOVED",
    "ROUTE_CHANGED",
    "SUCCESS_STATUS_CHANGED",
    "ACCESS_NARROWED",
    "ROLES_NARROWED",
    "SCOPES_ADDED",
    "CALL_REMOVED",
    "TIMEOUT_CUT",
    "EVENT_REMOVED",
    "EVENT_KEY_CHANGED",
    "PUBLISHER_REMOVED",
    "SUBSCRIPTION_REMOVED",
    "SCHEDULE_REMOVED",
    "TICKS_SKIPPED",
    "RULE_TIGHTENED",
    "REQUIRED_FIELD_ADDED",
    "FIELD_OUTPUT_ONLY",
    "OUTPUT_ONLY_REFUSED",
]
"""Rules of which WIRE_JSON has no counterpart."""
SCALARS = [
    "int32",
    "int64",
    "uint32",
    "uint64",
    "sint32",
    "sint64",
    "fixed32",
    "fixed64",
    "sfixed32",
    "sfixed64",
    "bool",
    "string",
    "bytes",
    "float",
    "double",
    "E",
    "F",
    "M",
    "N",
]
FORMS = {
    "implicit": "int32 f = 1;", "optional": "optional int32 f = 1;", "repeated": "repeated int32 f = 1;",
    "unpacked": "repeated int32 f = 1 [packed = false];", "oneof": "oneof o { int32 f = 1; }",
    "another oneof": "oneof q { int32 f = 1; }", "map": "map<int32, int32> f = 1;",
}  # fmt: skip
HEAD = """syntax = "proto3"; package pairs;
enum E { A = 0; B = 1; } enum F { FA = 0; FB = 1; } message M { int32 a = 1; } message N { int32 a = 1; }
"""


def refused_by_buf(tmp_path: Path, old: dict[str, str], new: dict[str, str]) -> list[dict[str, str]]:
    """Return the complaints of buf, as JSON."""
    for name, sources in (("old", old), ("new", new)):
        (tmp_path / f"{name}.binpb").write_bytes(compiled(**sources).SerializeToString())
    config = json.dumps({"version": "v2", "breaking": {"use": ["WIRE_JSON"]}})
    done = subprocess.run(
        [BUF, "breaking", "new.binpb", "--against", "old.binpb", "--config", config, "--error-format=json"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode in (0, 100), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_package(text: str, package: str) -> str:
    """Return the contract as one of its own: names and routes of several would clash."""
    return text.replace("shop.v1", package).replace('"/v', f'"/{package}/v')


def test_the_table_agrees_with_buf(tmp_path: Path) -> None:
    titles = list(CASES)
    old = {f"c{index}": in_package(SHOP, f"c{index}.v1") for index in range(len(titles))}
    new = {f"c{index}": in_package(changed_text(title), f"c{index}.v1") for index, title in enumerate(titles)}
    complaints = refused_by_buf(tmp_path, old, new)
    by_buf = {titles[int(one["path"][1:].removesuffix(".proto"))] for one in complaints}
    ours = {title for title in titles if set(CASES[title][2].split()) - set(OURS)}
    assert by_buf - ours == set(BUF_REFUSES)
    assert ours - by_buf == set(BUF_PASSES)


@pytest.mark.parametrize(
    ("kinds", "buf_refuses", "buf_passes"),
    [
        (
            {name: f"{name} f = 1;" for name in SCALARS},
            set(),
            {
                pair
                for one, other in [("int32", "uint32"), ("int64", "uint64"), ("fixed32", "sfixed32"), ("fixed64", "sfixed64")]
                for pair in ((one, other), (other, one))
            },
        ),
        (FORMS, {pair for pair in permutations(["implicit", "optional", "oneof", "another oneof"], 2) if "oneof" in "".join(pair)}, set()),
    ],
    ids=["types", "forms"],
)  # fmt: skip
def test_each_pair_of_kinds_agrees_with_buf(
    kinds: dict[str, str], buf_refuses: set[tuple[str, str]], buf_passes: set[tuple[str, str]], tmp_path: Path
) -> None:
    pairs = list(permutations(kinds, 2))
    old, new = (
        HEAD + "".join(f"message P{index} {{ {kinds[pair[side]]} }}\n" for index, pair in enumerate(pairs))
        for side in (0, 1)
    )
    first = HEAD.count("\n") + 1
    by_buf = {pairs[int(one["start_line"]) - first] for one in refused_by_buf(tmp_path, {"t": old}, {"t": new})}
    found = breaks(loader.read(compiled(t=old)), loader.read(compiled(t=new)))
    ours = {pairs[int(one.place.rpartition(":")[2]) - first] for one in found}
    assert by_buf - ours == buf_refuses
    assert ours - by_buf == buf_passes
