"""An async function behind an HTTP API: payload format 2.0."""

import asyncio
import json

MALFORMED = {
    "text-status": {"statusCode": "203", "body": "fine"},
    "object-body": {"statusCode": 200, "body": {"an": "object"}},
    "none": None,
    "text": "just a text",
    "cookies": {"statusCode": 200, "cookies": "a=1", "body": "no"},
}


async def handler(event, context):
    route = event["routeKey"]
    if route == "GET /orders/{id}":
        return {"id": event["pathParameters"]["id"], "query": event.get("queryStringParameters")}
    if route == "POST /orders":
        order = json.loads(event["body"])
        await asyncio.sleep(0)
        return {
            "statusCode": 201,
            "headers": {"content-type": "application/json"},
            "cookies": ["seen=" + ",".join(event.get("cookies", [])), "order=7; Path=/"],
            "body": json.dumps({"ordered": order}),
        }
    if route == "GET /wait":
        await asyncio.sleep(60)
    return MALFORMED[event["pathParameters"]["how"]]
