"""Lambda handler that greets: any API Gateway event in, a JSON response out. It knows nothing of the mesh."""

from __future__ import annotations

import json
from typing import Any

greeted = 0
"""Number of greetings of this execution environment."""


def lambda_handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Greet the name in the path, or the world."""
    global greeted  # noqa: PLW0603 - Lambda functions keep state in globals
    greeted += 1
    parameters: dict[str, str] = event.get("pathParameters") or {}
    name = parameters.get("name", "world")
    body = {"message": f"Hello, {name}!", "greeted": greeted, "request_id": context.aws_request_id}
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}
