"""protoc in every folder of a project, and which of its files are the contract's own."""

from __future__ import annotations

import shutil
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


SHOWCASE = """syntax = "proto3";
package google.showcase.v1;
import "google/api/annotations.proto";
import "google/api/client.proto";
import "google/longrunning/operations.proto";
import "google/type/date.proto";
import "meshapi/v1/annotations.proto";
service Compliance {
  option (google.api.default_host) = "localhost";
  rpc Repeat(Request) returns (Request) { option (google.api.http) = { post: "/v1/repeat" body: "*" }; }
  rpc Wait(Request) returns (google.longrunning.Operation);
}
message Request { google.type.Date date = 1; }
message Repeated { option (meshapi.v1.event) = { key: "name" }; string name = 1; }
"""
OPERATIONS = """syntax = "proto3";
package google.longrunning;
import "google/api/annotations.proto";
service Operations {
  rpc Get(Operation) returns (Operation) { option (google.api.http) = { get: "/v1/{name=operations/**}" }; }
}
message Operation { string name = 1; }
"""


@pytest.fixture
def google(tmp_path: Path) -> Path:
    """An import root with files below ``google/``: the user's own, one to import, and a copy of an installed one."""
    root = tmp_path / "protos" / "google"
    for folder in ("showcase/v1", "longrunning", "cloud/location"):
        (root / folder).mkdir(parents=True)
    (root / "showcase/v1/compliance.proto").write_text(SHOWCASE)
    (root / "longrunning/operations.proto").write_text(OPERATIONS)
    name = "google/cloud/location/locations.proto"
    shutil.copy(next(found / name for found in protoc.builtin_roots() if (found / name).is_file()), root.parent / name)
    return root.parent


def test_a_contract_may_live_below_google(google: Path, tmp_path: Path) -> None:
    files = protoc.load([google], tmp_path / "gen")
    assert set(loader.read(files).services) == {"google.showcase.v1.Compliance", "google.longrunning.Operations"}
    for served in ([], ["google.showcase.v1.Compliance"]):
        contract = loader.read(files, served)
        assert set(contract.services) == {"google.showcase.v1.Compliance"}
        assert set(contract.events) == {"google.showcase.v1.Repeated"}
    both = ["google.longrunning.Operations", "google.cloud.location.Locations"]
    assert set(loader.read(files, both).services) == {"google.showcase.v1.Compliance", *both}
    stubs = {path.relative_to(tmp_path / "gen").as_posix() for path in tmp_path.glob("gen/google/**/*_grpc.py")}
    assert stubs == {
        f"google/{name}_pb2_grpc.py"
        for name in ("showcase/v1/compliance", "longrunning/operations", "cloud/location/locations")
    }


def test_a_service_below_google_that_is_called_and_not_served_is_named(google: Path, tmp_path: Path) -> None:
    (google / "a.proto").write_text(
        'syntax = "proto3"; import "meshapi/v1/annotations.proto";\n'
        'service A { option (meshapi.v1.service) = { calls: "google.longrunning.Operations" }; }\n'
    )
    with pytest.raises(Faults, match=r"'google\.longrunning\.Operations', which no service of mesh\.toml serves"):
        loader.read(protoc.load([google], tmp_path / "gen"), [])
