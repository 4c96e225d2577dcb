"""``mesh export asyncapi``: every event, and nothing that does not hold together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from events.v1 import events_pb2 as pb
from google.protobuf import json_format

from mesh import cli
from mesh.contract.model import Contract
from mesh.control.commands import asyncapi
from mesh.events.cloudevents import Event

SAMPLE = str(Path(__file__).parent.parent.parent / "mesh.toml")


@pytest.fixture
def made(contract: Contract) -> dict[str, Any]:
    return json.loads(json.dumps(asyncapi.document(contract, title="Shop")))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def found(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def test_every_reference_is_of_something(made: dict[str, Any]) -> None:
    assert len(set(references(made))) > 5
    for reference in references(made):
        assert found(made, reference)


def test_channels_and_who_uses_them(made: dict[str, Any]) -> None:
    assert made["asyncapi"] == "3.0.0"
    assert made["channels"]["events.v1.Ordered"]["address"] == "events.events-v1-Ordered.{partition}.{key}"
    assert made["channels"]["events.v1.Ordered"]["description"] == "In the order of `customer`."
    assert set(made["channels"]) >= {"events.v1.Ordered", "events.v1.Noted", "events.v1.Counted"}
    operation = made["operations"]["events.v1.Shop.publish.events.v1.Ordered"]
    assert operation["action"] == "send"
    assert found(made, operation["channel"]["$ref"]) is made["channels"]["events.v1.Ordered"]


def test_what_is_published_is_as_the_document_says(made: dict[str, Any]) -> None:
    from datetime import UTC, datetime

    order = pb.Ordered(customer="Ada", number=4)
    event = Event(id="1", type="events.v1.Ordered", source="s", key="Ada", time=datetime.now(UTC), data=b"", hops=2)
    message = made["components"]["messages"]["events.v1.Ordered"]
    headers = found(made, message["traits"][0]["$ref"])["headers"]
    jsonschema.validate(event.to_headers(), {**headers, "additionalProperties": True})
    jsonschema.validate(json_format.MessageToDict(order), {**message["payload"], "components": made["components"]})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"customer": 4}, {**message["payload"], "components": made["components"]})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "asyncapi.json"
    assert cli.main(["export", "asyncapi", "--file", SAMPLE, "--out", str(out), "--api-version", "1.4"]) == 0
    assert json.loads(out.read_text())["info"] | {"description": ""} == {
        "title": "Mesh", "version": "1.4", "description": "",
    }  # fmt: skip
    assert capsys.readouterr().out.startswith(f"{out}: ")
