# ruff: noqa: E501, ISC004 - a fault is one line, however long
"""Contracts as other people write them: ``mesh check`` takes them, or names the file that is wrong and what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.api import annotations_pb2

SERVICE = "service A { rpc Get(M) returns (M); }\n"
MANIFEST = '[services.a]\nmodule = "services.f"\nserves = ["{serves}"]\n'
FUNCTION = "async def get(request, context):\n    return request\n"
GOOGLE_API = Path(annotations_pb2.__file__).parent
Check = Callable[..., str]


def proto2(body: str, package: str = "a.v1") -> str:
    return f'syntax = "proto2";\npackage {package};\n{SERVICE}{body}\n'


def proto3(body: str = "message M { string t = 1; }", package: str = "a.v1", head: str = "") -> str:
    return f'syntax = "proto3";\npackage {package};\n{head}{SERVICE}{body}\n'


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Write a project, run ``mesh check`` in a process of its own, and return what it says."""

    def run(
        files: dict[str, str | bytes],
        serves: str = "a.v1.A",
        functions: str = FUNCTION,
        roots: str = '["protos"]',
        folder: str = "project",
    ) -> str:
        project = tmp_path / folder
        manifest = f"protos = {roots}\n{MANIFEST.format(serves=serves)}"
        made = {"mesh.toml": manifest, "services/__init__.py": "", "services/f.py": functions, **files}
        for name, text in made.items():
            path = project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "check", "--file", str(project / "mesh.toml")],
            capture_output=True, text=True, check=False, cwd=project, timeout=60,
        )  # fmt: skip
        assert (done.returncode == 0) is done.stdout.startswith("ok:"), done.stderr
        return (done.stdout + done.stderr).strip().replace(f"{project}/", "")

    return run


def stub(module: str) -> str:
    return f"import importlib\npb = importlib.import_module({module!r})\nassert pb.M\n{FUNCTION}"


def google_api(*names: str) -> dict[str, bytes]:
    return {f"google/api/{name}": (GOOGLE_API / name).read_bytes() for name in names}


ROUTED = """\
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
service B { rpc Get(M) returns (M) { option (google.api.http) = { get: "/v1" }; option (meshapi.v1.method) = { access: PUBLIC }; } }
"""
OLD_HTTP = """\
syntax = "proto3";
package google.api;
message HttpRule {
  string selector = 1;
  oneof pattern { string get = 2; string put = 3; string post = 4; string delete = 5; string patch = 6; CustomHttpPattern custom = 8; }
  string body = 7;
  repeated HttpRule additional_bindings = 11;
}
message CustomHttpPattern { string kind = 1; string path = 2; }
"""
TAKEN = {
    "a service below google/": (
        {"protos/google/longrunning/operations.proto": proto3(package="google.longrunning")},
        {"serves": "google.longrunning.A", "functions": stub("google.longrunning.operations_pb2")},
    ),
    "a message below google/ that installed packages lack": (
        {
            "protos/a/v1/a.proto": proto3("message M { google.own.N n = 1; }", head='import "google/own/n.proto";\n'),
            "protos/google/own/n.proto": 'syntax = "proto3";\npackage google.own;\nmessage N {}\n',
        },
        {"functions": stub("a.v1.a_pb2")},
    ),
    "copies of google/api, one of them older": (
        {
            "protos/a/v1/a.proto": proto3(head=ROUTED),
            "protos/google/api/http.proto": OLD_HTTP,
            **{f"protos/{name}": data for name, data in google_api("annotations.proto").items()},
        },
        {"functions": stub("a.v1.a_pb2")},
    ),
    "copies of google/api below a root inside the other": (
        {
            "protos/a/v1/a.proto": proto3(head=ROUTED),
            **{f"protos/third_party/{name}": data for name, data in google_api("annotations.proto", "http.proto").items()},
        },
        {"roots": '["protos", "protos/third_party"]'},
    ),
    "a copy of meshapi from before its newest options": (
        {
            "protos/a/v1/a.proto": proto3(head=ROUTED),
            "protos/meshapi/v1/annotations.proto": 'syntax = "proto3";\npackage meshapi.v1;\n',
        },
        {},
    ),
    "one JSON name twice, allowed": (
        {"protos/a/v1/a.proto": proto2(
            "message M { option deprecated_legacy_json_field_conflicts = true;"
            " optional int32 a_b = 1; optional int32 aB = 2; }")},
        {"functions": stub("a.v1.a_pb2")},
    ),
    "names that protoc's command line takes amiss": (
        {"protos/-a.proto": proto3(), "protos/@b/c d.proto": 'syntax = "proto3";\n', "protos/e=f.proto": 'syntax = "proto3";\n'},
        {"folder": "x=y & z", "functions": stub("_a_pb2")},
    ),
    "a byte order mark and CRLF": ({"protos/a/v1/a.proto": b"\xef\xbb\xbf" + proto3().replace("\n", "\r\n").encode()}, {}),
    "methods that share a snake_case name": (
        {"protos/a/v1/a.proto": proto3("service B { rpc GetURL(M) returns (M); rpc GetUrl(M) returns (M); }\nmessage M {}")},
        {"serves": "a.v1.B", "functions": FUNCTION.replace("get", "GetURL") + FUNCTION.replace("get", "GetUrl")},
    ),
    "everything named by Python keywords": (
        {"protos/class/v1/import.proto": proto3(
            "service None { rpc lambda(M) returns (M); rpc None(M) returns (M); rpc Import(M) returns (M); }\n"
            "message M { string def = 1; E from = 2; M None = 3; oneof if { bool True = 4; string else = 5; } }\n"
            "enum E { None_ = 0; pass = 1; mro = 2; }\n"
            "message True { message class {} }\nservice X { rpc is(True.class) returns (True); }")},
        {
            "serves": "a.v1.None",
            "functions": stub("class.v1.import_pb2") + (
                "grpc = importlib.import_module('class.v1.import_pb2_grpc')\nassert grpc.NoneServicer.lambda_ and grpc.XStub.__init__\n"
                + FUNCTION.replace("get", "lambda_") + FUNCTION.replace("get", "import_") + FUNCTION.replace("get", "none")
            ),
        },
    ),
    "two roots with files of one package and one file in both": (
        {
            "one/a/v1/a.proto": proto3(head='import "a/v1/m.proto";\n', body=""),
            "two/a/v1/m.proto": 'syntax = "proto3";\npackage a.v1;\nmessage M {}\n',
            "two/a/v1/a.proto": proto3(head='import "a/v1/m.proto";\n', body=""),
        },
        {"roots": '["one", "two"]'},
    ),
    "proto2 and editions": (
        {
            "protos/a/v1/a.proto": proto2(
                'import public "a/v1/b.proto";\nimport weak "a/v1/c.proto";\n'
                "message M { required int32 r = 1; optional group G = 2 { optional int32 x = 1; } extensions 100 to 199; "
                'optional string t = 536870911 [default = "\\001\\""]; optional double d = 3 [default = -inf]; }\n'
                "extend M { optional E e = 100 [default = LOW]; }"
            ),
            "protos/a/v1/b.proto": 'edition = "2023";\npackage a.v1;\nmessage N { N n = 1 [features.message_encoding = DELIMITED]; }\n',
            "protos/a/v1/c.proto": 'syntax = "proto2";\npackage a.v1;\nenum E { option allow_alias = true; HIGH = 5; TOP = 5; LOW = -2147483648; }\n',
        },
        {"functions": stub("a.v1.a_pb2")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_takes(check: Check, name: str) -> None:
    files, options = TAKEN[name]
    said = check(files, **options)  # type: ignore[arg-type]
    assert said.startswith("ok: 1 services"), said


REFUSED = {
    "one JSON name for two fields": (
        {"protos/a/v1/a.proto": proto2("message M { optional int32 eventType = 1;\n  optional int32 event_type = 2; }")},
        {},
        "a/v1/a.proto:5: a.v1.M: the fields 'eventType' and 'event_type' have the same JSON name ('eventType'), which protobuf's "
        "Python runtime refuses; give one of them another json_name, or set option "
        "deprecated_legacy_json_field_conflicts = true in the message",
    ),
    "names swapped, in a nested message": (
        {"protos/a/v1/a.proto": proto3(
            'message M { message N { string c = 1 [json_name = "d"];\n string d = 2 [json_name = "c"]; } }')},
        {},
        "a/v1/a.proto:5: a.v1.M.N: the fields 'c' and 'd' have each other's names in JSON ('c'), which protobuf's Python "
        "runtime refuses; give one of them another json_name, or set option deprecated_legacy_json_field_conflicts = "
        "true in the message",
    ),
    "two modules of one name": (
        {"protos/a-b.proto": proto3(), "protos/a_b.proto": 'syntax = "proto3";\n'},
        {},
        "protos/a_b.proto: its Python module a_b_pb2.py is also that of a-b.proto; rename the file",
    ),
    "no UTF-8": (
        {"protos/a/v1/a.proto": proto3("// Gr\xfc\xdfe\nmessage M {}").encode("latin-1")},
        {},
        "protos/a/v1/a.proto:4: the file is not UTF-8; save it as UTF-8, comments included",
    ),
    "an import that another project has": (
        {"protos/a/v1/a.proto": proto3(head='import "protoc-gen-openapiv2/options/annotations.proto";\n')},
        {},
        "protos/a/v1/a.proto:3: the import 'protoc-gen-openapiv2/options/annotations.proto' is in no import root; copy the "
        "file from grpc-gateway into an import root under this name, or add the folder that holds it to `protos` in mesh.toml",
    ),
    "an import that is below another folder": (
        {
            "protos/a/v1/a.proto": proto3(head='import "b/b.proto";\n'),
            "protos/vendor/b/b.proto": 'syntax = "proto3";\n',
        },
        {},
        "protos/a/v1/a.proto:3: the import 'b/b.proto' is in no import root; add the folder protos/vendor to `protos` in "
        "mesh.toml",
    ),
    "an import with the name of the root": (
        {
            "protos/a/v1/a.proto": proto3(head='import "protos/b/b.proto";\n'),
            "protos/b/b.proto": 'syntax = "proto3";\n',
        },
        {},
        "protos/a/v1/a.proto:3: the import 'protos/b/b.proto' is in no import root; write import 'b/b.proto': the name is "
        "relative to the import root",
    ),
    "a file under two names": (
        {
            "protos/a/v1/a.proto": proto3(head='import "google/api/annotations.proto";\n'),
            **{f"protos/vendor/{name}": data for name, data in google_api("annotations.proto").items()},
        },
        {},
        "protos/vendor/google/api/annotations.proto:30: this is 'google/api/annotations.proto' under another name; add the "
        "folder protos/vendor to `protos` in mesh.toml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_names_the_file_and_what_to_do(check: Check, name: str) -> None:
    files, options, line = REFUSED[name]
    assert check(files, **options) == line  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["email", "calendar", "grpc", "mesh"])
def test_names_the_package_that_hides_stubs(check: Check, package: str) -> None:
    files = {f"protos/{package}/v1/x.proto": proto3(package=f"{package}.v1")}
    said = check(files, f"{package}.v1.A", f"from {package}.v1 import x_pb2\n{FUNCTION}")
    assert f"gen/{package} is hidden by the Python package {package!r} (" in said
    assert said.endswith(f": rename the contract's folder {package}/ (its `package` can stay)")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("own", ["a/__init__.py", "a.py", "a/v1/__init__.py"])
def test_names_the_folder_of_the_project_that_hides_stubs(check: Check, own: str) -> None:
    said = check({"protos/a/v1/x.proto": proto3(), own: ""}, functions=f"from a.v1 import x_pb2\n{FUNCTION}")
    hidden = "a/v1" if "v1" in own else "a"
    package = hidden.replace("/", ".")
    assert (
        f"gen/{hidden} is hidden by the Python package {package!r} ({own}): rename that folder or the contract's"
        in said
    )
    assert len(said.splitlines()) == 1


def test_a_name_in_a_package_that_hides_stubs(check: Check) -> None:
    said = check({"protos/email/x.proto": proto3()}, functions=f"from email import x_pb2\n{FUNCTION}")
    assert "gen/email is hidden by the Python package 'email' (" in said


def test_methods_that_share_a_name_are_functions_of_their_own(check: Check) -> None:
    service = "service B { rpc GetURL(M) returns (M); rpc GetUrl(M) returns (M); }\nmessage M {}"
    said = check({"protos/a/v1/a.proto": proto3(service)}, "a.v1.B", FUNCTION)
    assert "there is no function 'GetURL' for a.v1.B/GetURL" in said
    assert "write async def GetUrl(request, context)" in said
