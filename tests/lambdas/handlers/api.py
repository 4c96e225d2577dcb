"""A small API in one function, as its author wrote it for API Gateway: payload format 1.0."""

import base64
import hashlib
import json
import logging
import os
import time

logger = logging.getLogger()
logger.setLevel(logging.INFO)

calls = 0


def plain(event, context):
    return {"items": [1, 2.5, None, True], "text": "Grüße, 世界 🚀", "big": 2**63 + 1}


def item(event, context):
    return {"statusCode": 200, "body": json.dumps(event["pathParameters"])}


def search(event, context):
    found = [event["queryStringParameters"], event["multiValueQueryStringParameters"]]
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(found)}


def upload(event, context):
    data = base64.b64decode(event["body"]) if event["isBase64Encoded"] else event["body"].encode()
    told = {"base64": event["isBase64Encoded"], "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {"statusCode": 201, "body": json.dumps(told)}


def image(event, context):
    data = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "image/png"},
        "body": base64.b64encode(data).decode(),
        "isBase64Encoded": True,
    }


def cookies(event, context):
    headers = {"Set-Cookie": ["a=1; HttpOnly", "b=2"], "X-Kept": ["x", "y"]}
    return {"statusCode": 302, "headers": {"Location": "/elsewhere"}, "multiValueHeaders": headers, "body": ""}


def count(event, context):
    global calls  # noqa: PLW0603 - what Lambda functions do
    calls += 1
    return {"statusCode": 200, "body": str(calls)}


def note(event, context):
    print("printed", event["queryStringParameters"]["word"])  # noqa: T201 - what Lambda functions do
    logger.info("logged %s", event["queryStringParameters"]["word"])
    return {"statusCode": 200, "body": context.aws_request_id}


def environment(event, context):
    left = [context.get_remaining_time_in_millis()]
    time.sleep(0.02)
    left.append(context.get_remaining_time_in_millis())
    told = {
        "left": left,
        "name": context.function_name,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "arn": context.invoked_function_arn,
        "group": context.log_group_name,
        "stream": context.log_stream_name,
        "id": context.aws_request_id,
        "environ": {
            name: value for name, value in os.environ.items() if name.startswith(("AWS_", "_", "LAMBDA", "TZ"))
        },
        "hour": time.localtime(0).tm_hour,
    }
    return {"statusCode": 200, "body": json.dumps(told)}


def large(event, context):
    return {"statusCode": 200, "body": "é" * (int(event["pathParameters"]["bytes"]) // 2)}


def fail(event, context):
    raise RuntimeError("the database password is 1234")


MALFORMED = {
    "text-status": {"statusCode": "203", "body": "fine"},
    "word-status": {"statusCode": "ok", "body": "no"},
    "object-body": {"statusCode": 200, "body": {"an": "object"}},
    "no-body": {"statusCode": 200},
    "none": None,
    "header": {"statusCode": 200, "headers": {"X-List": ["a"]}, "body": "no"},
    "set": {1, 2, 3},
}


def malformed(event, context):
    return MALFORMED[event["pathParameters"]["how"]]


ROUTES = {
    "/plain": plain,
    "/items/{id}": item,
    "/files/{folder}/{proxy+}": item,
    "/search": search,
    "/upload": upload,
    "/image": image,
    "/cookies": cookies,
    "/count": count,
    "/note": note,
    "/environment": environment,
    "/large/{bytes}": large,
    "/fail": fail,
    "/malformed/{how}": malformed,
}


def lambda_handler(event, context):
    return ROUTES[event["resource"]](event, context)
