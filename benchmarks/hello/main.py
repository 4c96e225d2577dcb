"""Peer: the same function for functions-framework, with a Flask request and response."""

from __future__ import annotations

import json
from typing import Any

import functions_framework


@functions_framework.http
def hello(request: Any) -> Any:
    """Greet the name in the JSON body."""
    name = json.loads(request.get_data())["name"]
    return json.dumps({"message": f"Hello, {name}!"}), 200, {"Content-Type": "application/json"}
