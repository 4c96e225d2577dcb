"""aws-embedded-metrics around a handler that counts in DynamoDB with boto3."""

import os
from typing import Any

import boto3
from aws_embedded_metrics import metric_scope
from boto3.dynamodb.conditions import Attr

table = boto3.resource("dynamodb").Table(os.environ["TABLE"])


@metric_scope
def handler(event: dict[str, Any], context: Any, metrics: Any) -> dict[str, Any]:
    metrics.set_namespace("shop")
    metrics.put_metric("counted", 1, "Count")
    metrics.set_property("request", context.aws_request_id)
    found = table.update_item(
        Key={"key": event["key"]},
        UpdateExpression="ADD visits :one",
        ExpressionAttributeValues={":one": 1},
        ConditionExpression=Attr("locked").not_exists(),
        ReturnValues="ALL_NEW",
    )
    return dict(found["Attributes"])
