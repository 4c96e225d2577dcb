"""A peer: the same function as functions-framework has it, a Flask request in and a response out."""

from __future__ import annotations

import json
from typing import Any

import functions_framework


@functions_framework.http
def hello(request: Any) -> Any:
    """Greet whom the JSON body names."""
    name = json.loads(request.get_data())["name"]
    return json.dumps({"message": f"Hello, {name}!"}), 200, {"Content-Type": "application/json"}
