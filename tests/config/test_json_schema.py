"""JSON Schema of mesh.toml: it takes what the mesh reads, refuses what it refuses, and describes every key."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mesh import cli
from mesh.config import json_schema, manifest
from mesh.faults import Faults

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema.document()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def described(schema: dict[str, Any]) -> set[str]:
    return {name for name, one in schema["properties"].items() if one.get("description")}


def test_it_is_a_schema_and_describes_every_key() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    kinds = {
        "Auth": manifest.AuthConfig, "Edge": manifest.EdgeConfig, "Events": manifest.EventsConfig,
        "Keys": manifest.KeysConfig, "Service": manifest.ServiceConfig, "Workers": manifest.WorkersConfig,
    }  # fmt: skip
    assert described(SCHEMA) == set(manifest.ManifestFile.__struct_encode_fields__)
    for name, kind in kinds.items():
        assert SCHEMA["definitions"][name]["description"]
        assert described(SCHEMA["definitions"][name]) | {"lambda"} == {*kind.__struct_encode_fields__, "lambda"}


@pytest.mark.parametrize(
    "path", [path.relative_to(ROOT) for pattern in ("*.toml", "services/**/*.toml", "deploy/**/*.toml")
             for path in ROOT.glob(pattern) if path.name != "pyproject.toml"], ids=str,
)  # fmt: skip
def test_the_files_of_the_repository_fit(path: Path) -> None:
    tables = tomllib.loads((ROOT / path).read_text(encoding="utf-8"))
    if "services" in tables:
        VALIDATOR.validate(tables)


TABLES = [
    ("", True),
    ('name = "shop"\ntls = "on"\nliveness = "none"', True),
    ('liveness = "1.5s"\nprotos = ["a", "b"]', True),
    ('tls = { certificate = "a", private_key = "b", ca = "c" }', True),
    ('[edge]\ncors = ["https://a.example"]\nmax_body = 4096\nrate_limit = { per_client = "50/s burst 200" }', True),
    ('[edge.cors]\norigins = ["*"]\nmax_age = "1h"', True),
    ('[edge]\nmax_body = "4MiB"\nbuffers = "1 GB"\ntimeout = "none"\nclient_trace = "trust"', True),
    ('[auth]\n[[auth.issuers]]\nissuer = "https://a.example"\naudience = ["a", "b"]', True),
    ('[events]\nuser = "a"\npassword = { secret = "nats" }', True),
    ('[services.a]\nmodule = "a"\nserves = ["a.v1.A"]\nworkers = { max = 3 }\nsettings = { x = [1, {}] }', True),
    ('[services.a]\nmodule = "a"\nserves = ["a.v1.A"]\nworkers = { idle = "5m", memory = "64MiB" }', True),
    ('[services.a]\nmodule = "a"\nserves = ["a.v1.A"]\nsettings = { key = { secret = "k", optional = true } }', True),
    ('nme = "shop"', False),
    ('tls = "yes"', False),
    ('tls = { certificate = "a" }', False),
    ('protos = "protos"', False),
    ("liveness = 10", False),
    ('liveness = "10"', False),
    ('[edge]\ntimeout = "5 min"', False),
    ("[edge]\nmax_body = -1", False),
    ('[edge]\nmax_body = "4 mb"', False),
    ('[edge]\nqueue = "x"', False),
    ('[edge]\nadaptive = "yes"', False),
    ('[edge]\nrate_limit = { per_client = "fast" }', False),
    ("[edge]\ncors = { credentials = true }", False),
    ('[auth]\nissuer = "https://a.example"\naudience = 3', False),
    ('[[auth.issuers]]\nissuer = "https://a.example"', False),
    ('[services.a]\nmodule = "a"\nserves = ["a.v1.A"]\nlamda = "a:b"', False),
    ('[services.a]\nmodule = "a"\nserves = ["a.v1.A"]\nworkers = { maximum = 3 }', False),
    ("[services.a]\nlambda = 3", False),
    ("services = [1]", False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "right"), TABLES)
def test_it_agrees_with_the_mesh(tmp_path: Path, text: str, *, right: bool) -> None:
    file = tmp_path / "mesh.toml"
    file.write_text(text)
    try:
        manifest.load(file, {})
        read = True
    except Faults:
        read = False
    assert (VALIDATOR.is_valid(tomllib.loads(text)), read) == (right, right)


def test_defaults_fit_their_keys() -> None:
    texts = set()
    for table in (SCHEMA, *SCHEMA["definitions"].values()):
        for one in table["properties"].values():
            if "default" in one:
                jsonschema.Draft7Validator({**one, "definitions": SCHEMA["definitions"]}).validate(one["default"])
                texts.add(str(one["default"]))
    assert {"30d", "10s", "10m", "4194304", "127.0.0.1:8080"} <= texts


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
    out = tmp_path / "mesh.schema.json"
    assert cli.main(["export", "schema", "-o", str(out)]) == 0
    assert json.loads(out.read_text()) == SCHEMA
