"""Lambda function under load, as its author wrote it for AWS."""

from __future__ import annotations

import json
from typing import Any


def lambda_handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """Greet the name in the JSON body."""
    name = json.loads(event["body"])["name"]
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"message": f"Hello, {name}!"}),
    }
