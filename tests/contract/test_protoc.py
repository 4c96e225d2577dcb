"""protoc runs in every folder of a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.contract import loader, protoc
from mesh.faults import Faults

PROTO = """syntax = "proto3";
package a.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
message Ask { string name = 1; }
service A { rpc Get(Ask) returns (Ask) { option (google.api.http) = { get: "/get" }; } }
"""


@pytest.mark.parametrize("name", ["müller 日本", "a:b=c", "-I", "@x", "back\\slash\n $HOME", "\udcff"], ids=ascii)
def test_a_contract_is_compiled_in_any_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    (folder / "protos/a/v1").mkdir(parents=True)
    (folder / "protos/a/v1/a.proto").write_text(PROTO)
    contract = loader.read(protoc.load([folder / "protos"], folder / "gen"))
    assert list(contract.methods) == ["/a.v1.A/Get"]
    assert (folder / "gen/a/v1/a_pb2_grpc.py").is_file()


def test_an_import_root_that_protoc_would_split_is_named(tmp_path: Path) -> None:
    root = tmp_path / "a:b"
    root.mkdir()
    (root / "a.proto").write_text(PROTO)
    with pytest.raises(Faults, match="protoc splits paths at ':'"):
        protoc.generate([root], tmp_path / "gen")


def test_a_diagnostic_says_where_in_any_folder(tmp_path: Path) -> None:
    file = tmp_path / "ü:b" / "protos" / "a.proto"
    file.parent.mkdir(parents=True)
    file.write_text('syntax = "proto3";\nmessage Ask { Nothing name = 1; }\n')
    with pytest.raises(Faults) as caught:
        protoc.generate([file.parent], tmp_path / "ü:b" / "gen")
    assert str(caught.value).startswith(f'{file}:2: "Nothing" is not defined')


def test_a_folder_called_like_a_file_is_none_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    root = tmp_path / "protos"
    (root / "x.proto").mkdir(parents=True)
    (root / "x.proto" / "a.proto").write_text(PROTO)
    protoc.load([root], tmp_path / "gen")
    (root / "b.proto").symlink_to(root / "nothing.proto")
    with pytest.raises(Faults, match=r"protos/b\.proto: no such file or directory"):
        protoc.load([root], tmp_path / "gen")


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no folder that nobody can write here")
def test_stubs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.proto").write_text(PROTO)
    with pytest.raises(Faults, match=r"/sys/gen: the stubs cannot be written: .*; `stubs` in mesh.toml names another"):
        protoc.generate([tmp_path], Path("/sys/gen"))
