"""Powertools for AWS Lambda: the resolver that the environment names, with Logger, Metrics and Tracer."""

import os
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import (
    APIGatewayHttpResolver,
    APIGatewayRestResolver,
    LambdaFunctionUrlResolver,
    Response,
)
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.shared.cookies import Cookie

PREFIX = os.environ["PREFIX"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))

logger, metrics, tracer = Logger(service="shop"), Metrics(namespace="shop", service="shop"), Tracer(service="shop")
kinds: dict[str, Any] = {
    "rest": APIGatewayRestResolver, "http": APIGatewayHttpResolver, "url": LambdaFunctionUrlResolver,
}  # fmt: skip
app = kinds[os.environ["RESOLVER"]]()


@app.get(f"{PREFIX}/items/<number>")
@tracer.capture_method
def item(number: str) -> dict[str, object]:
    logger.info("item asked for", number=number)
    metrics.add_metric(name="asked", unit=MetricUnit.Count, value=1)
    event = app.current_event
    q = event.resolved_query_string_parameters.get("q")
    return {"id": int(number), "q": q, "key": event.headers.get("x-key")}


@app.post(f"{PREFIX}/echo")
def echo() -> Response[str]:
    return Response(HTTPStatus.CREATED, "application/json", app.current_event.body, {"x-made": "yes"})


@app.get(f"{PREFIX}/image")
def image() -> Response[bytes]:
    return Response(HTTPStatus.OK, "image/png", PNG)


@app.get(f"{PREFIX}/cookies")
def cookies() -> Response[str]:
    return Response(HTTPStatus.OK, "text/plain", "", cookies=[Cookie("a", "1"), Cookie("b", "2")])


@app.get(f"{PREFIX}/boom")
def boom() -> None:
    raise ValueError("boom")


@app.exception_handler(ValueError)
def failed(error: ValueError) -> Response[str]:
    return Response(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", "failed")


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return app.resolve(event, context)
