"""The sample Lambda function: its handler as its author would test it, and its mesh.toml."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from mesh.config import manifest
from services.hello.handler import lambda_handler

ROOT = Path(__file__).parent.parent.parent


def test_it_greets() -> None:
    context = SimpleNamespace(aws_request_id="one")
    someone = lambda_handler({"pathParameters": {"name": "Ada"}}, context)
    world = lambda_handler({"pathParameters": None}, context)
    assert (someone["statusCode"], json.loads(someone["body"])["message"]) == (200, "Hello, Ada!")
    assert json.loads(world["body"])["message"] == "Hello, world!"
    assert json.loads(world["body"])["greeted"] == json.loads(someone["body"])["greeted"] + 1


def test_its_mesh_has_its_routes() -> None:
    function = manifest.load(ROOT / "services" / "hello" / "mesh.toml", {}).lambdas["hello"]
    assert [f"{route.verb} {route.resource}" for route in function.routes] == ["GET /hello", "GET /hello/{name}"]
