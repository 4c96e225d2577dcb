"""HTTP routes of a Lambda function from the event lists of serverless.yml and SAM. Pure.

``http`` (SAM: ``Api``) is a REST API, ``httpApi`` (``HttpApi``) an HTTP API, ``url`` (``FunctionUrlConfig``) a function
URL. mesh.toml has its own keys for the other events (``schedule``, ``subscribes``, ``access``, ``[edge] cors``), or the
mesh does not support them. Such an event is a fault until mesh.toml has the key, because a function with an ignored
trigger would never run.

Sources: Serverless Framework 3, "AWS Lambda Events", "HTTP API", "API Gateway" and their JSON schemas; AWS SAM
specification, "EventSource", "HttpApi", "Api", "FunctionUrlConfig".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from mesh.config.api_document import (
    ANY,
    BODY,
    DEFAULT,
    HTTP_1,
    HTTP_2,
    NO_OVERRIDES,
    REST,
    URL,
    VERBS,
    DocumentError,
    HttpRoute,
    Overrides,
    resource_of,
)

__all__ = ["handler_of", "of_events"]

_SAM = {"Api": "http", "HttpApi": "httpApi"}
"""HTTP event type of SAM → name in serverless.yml."""
_SCHEDULES = frozenset(("schedule", "Schedule", "ScheduleV2"))
_MESSAGES = frozenset((
    "activemq", "cloudwatchEvent", "cloudwatchLog", "eventBridge", "iot", "kafka", "msk", "rabbitmq", "s3", "sns",
    "sqs", "stream", "CloudWatchEvent", "CloudWatchLogs", "DocumentDB", "DynamoDB", "EventBridgeRule", "IoTRule",
    "Kinesis", "MQ", "MSK", "S3", "SNS", "SQS", "SelfManagedKafka",
))  # fmt: skip
"""Event sources that an event of the mesh can replace."""
_UNSUPPORTED = frozenset((
    "alb", "alexaSkill", "alexaSmartHome", "cloudFront", "cognitoUserPool", "iotFleetProvisioning", "websocket",
    "AlexaSkill", "Cognito",
))  # fmt: skip
_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)\Z")
_UNITS = {"minute": (1, "m"), "hour": (1, "h"), "day": (24, "h")}


def of_events(document: Any, overrides: Overrides = NO_OVERRIDES) -> tuple[HttpRoute, ...]:
    """Return the routes of a function configuration.

    Args:
        document: ``{"config": {…}, "events": [{"http": {"method": "get", "path": "/hello"}}]}``; a function of a
            serverless.yml; or an ``AWS::Serverless::Function``, whole or its ``Properties``.
        overrides: Settings of mesh.toml.

    Raises:
        DocumentError: The document is none of these, has no event, or has an unsupported event.
    """
    function = _function(document)
    events = function.get("events", function.get("Events"))
    url = _value(function, "url") or function.get("FunctionUrlConfig")
    if events is None and url:
        events = []
    if not isinstance(events, (list, dict)):
        raise DocumentError('expected an object with "events": [{"http": {"method": …, "path": …}}]')
    general = _value(function, "httpApi")
    payload = general.get("payload") if isinstance(general, dict) else None
    routes: list[HttpRoute] = [HttpRoute(ANY, DEFAULT, event=overrides.event(URL))] if url else []
    faults: list[str] = []
    for place, kind, rule in _entries(events):
        try:
            routes += _routes(place, kind, rule, payload, overrides)
        except DocumentError as error:
            faults += error.args
    if isinstance(url, dict):
        guarded = {**url, "AuthType": url.get("AuthType") not in (None, "NONE")}
        for key in ("authorizer", "AuthType", "cors", "Cors"):
            faults += _setting_faults(f"url.{key}", key, overrides) if guarded.get(key) else []
    if faults:
        raise DocumentError(*faults)
    if not events and not url:
        raise DocumentError('events: expected at least one such as {"http": {"method": …, "path": …}}')
    return tuple(routes)


def handler_of(document: Any) -> tuple[str, str]:
    """Return the handler of a function configuration and the folder of its code (``CodeUri``), or ``""`` for each."""
    function = _function(document)
    handler = _value(function, "handler") or function.get("Handler") or ""
    folder = function.get("CodeUri") or ""
    return (handler if isinstance(handler, str) else ""), (folder if isinstance(folder, str) else "")


def _function(document: Any) -> dict[str, Any]:
    """Return the object of the function.

    Raises:
        DocumentError: The document has several functions, or is no object.
    """
    if isinstance(document, dict) and document.get("Type") == "AWS::Serverless::Function":
        document = document.get("Properties")
    if not isinstance(document, dict):
        raise DocumentError('expected an object with "events": [{"http": {"method": …, "path": …}}]')
    for key, kind in (("functions", "serverless.yml"), ("Resources", "SAM template")):
        if isinstance(document.get(key), dict):
            names = ", ".join(map(str, document[key]))
            raise DocumentError(
                f"{key}: this is a whole {kind} ({names}); give each service the object of its function"
            )
    return document


def _value(function: dict[str, Any], key: str) -> Any:
    """Return a value of a function from ``config`` or from the function itself."""
    config = function.get("config")
    return config[key] if isinstance(config, dict) and key in config else function.get(key)


def _entries(events: list[Any] | dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield place, kind and rule of each event in a list (serverless.yml) or an object (SAM)."""
    if isinstance(events, dict):
        for name, event in events.items():
            kind = event.get("Type") if isinstance(event, dict) else None
            if not isinstance(kind, str):
                raise DocumentError(f'Events.{name}: expected an object with "Type" and "Properties", got {event!r}')
            rule = event.get("Properties") or {}
            if kind == "HttpApi" and isinstance(rule, dict) and not rule.keys() & {"Path", "Method"}:
                rule = {**rule, "Path": DEFAULT}
            yield f"Events.{name}", _SAM.get(kind, kind), rule
        return
    for index, event in enumerate(events):
        place = f"events[{index}]"
        if not isinstance(event, dict) or not event:
            raise DocumentError(f"{place}: expected an object such as {{'http': {{…}}}}, got {event!r}")
        for kind, rule in event.items():
            yield f"{place}.{kind}", kind, rule


def _routes(place: str, kind: str, rule: Any, payload: Any, overrides: Overrides) -> list[HttpRoute]:
    if kind in ("http", "httpApi"):
        return _http(place, kind, rule, payload, overrides)
    if isinstance(rule, dict) and (
        rule.get("enabled", rule.get("Enabled")) is False or rule.get("State") == "DISABLED"
    ):
        return []
    if kind in _SCHEDULES:
        if overrides.schedule:
            return []
        hint = _schedule(rule)
        raise DocumentError(f"{place}: schedules belong in mesh.toml: set schedule = {hint} there")
    if kind in _MESSAGES:
        if overrides.subscribes:
            return []
        raise DocumentError(
            f"{place}: HTTP, schedules and events of the mesh invoke a function, {kind} does not; remove it, "
            "or set subscribes = [events] in mesh.toml as its replacement"
        )
    if kind in _UNSUPPORTED:
        raise DocumentError(f"{place}: the mesh does not support {kind}; remove it")
    known = ["http", "httpApi", *sorted(_SCHEDULES | _MESSAGES | _UNSUPPORTED)]
    close = difflib.get_close_matches(kind, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; HTTP events are http (REST API) and httpApi (HTTP API)"
    raise DocumentError(f"{place}: unknown kind of event{hint}")


def _schedule(rule: Any) -> str:
    """Return the value of ``schedule`` for a rule, or an example if it cannot be derived."""
    value = rule.get("rate", rule.get("Schedule", rule.get("ScheduleExpression"))) if isinstance(rule, dict) else rule
    value = value[0] if isinstance(value, list) and value else value
    match = _RATE.match(str(value))
    if match is None:
        return '"a cron line" or "@every 1h"'
    factor, unit = _UNITS[match[2]]
    return f'"@every {int(match[1]) * factor}{unit}"'


def _http(place: str, kind: str, rule: Any, payload: Any, overrides: Overrides) -> list[HttpRoute]:
    value = _rule(place, rule)
    method, path = value.get("method", value.get("Method")), value.get("path", value.get("Path"))
    event = REST if kind == "http" else HTTP_2
    if kind == "httpApi":
        version = str(value.get("PayloadFormatVersion", payload or "2.0"))
        if version not in ("1.0", "2.0", "1", "2"):
            raise DocumentError(f"{place}: the payload format is 1.0 or 2.0, not {version!r}")
        event = HTTP_1 if version.startswith("1") else HTTP_2
    else:
        integration = str(value.get("integration") or "aws_proxy").lower().replace("-", "_")
        if integration in ("http", "http_proxy", "mock"):
            return []  # API Gateway handles the request without a function
        if integration in ("lambda", "aws"):
            if overrides.integration is None:
                raise DocumentError(
                    f"{place}.integration: {value['integration']!r} needs mapping templates, which are not run here; "
                    'say integration = "event" (the JSON body is the event) or "proxy" (API Gateway\'s) in mesh.toml'
                )
            event = BODY
        if value.get("async"):
            raise DocumentError(f"{place}.async: the caller always waits for the function; remove it")
    faults = [
        text
        for key in ("authorizer", "private", "cors", "Auth")
        if value.get(key)
        for text in _setting_faults(f"{place}.{key}", key, overrides)
    ]
    if faults:
        raise DocumentError(*faults)
    verb, resource = _route(place, kind, method, path)
    return [HttpRoute(verb, resource, event=overrides.event(event))]


def _rule(place: str, rule: Any) -> dict[str, Any]:
    """Return a rule as an object. ``"GET /hello"`` has method and path, ``"*"`` a path only."""
    if isinstance(rule, dict):
        return rule
    if not isinstance(rule, str):
        raise DocumentError(f"{place}: expected an object with method and path, or a text such as 'GET /hello'")
    words = rule.split()
    if len(words) == 1 and words[0] in ("*", DEFAULT):
        return {"path": words[0]}
    try:
        method, path = words
    except ValueError:
        text = f"{place}: expected a method and a path such as 'GET /hello', got {rule!r}"
        raise DocumentError(text) from None
    return {"method": method, "path": path}


def _route(place: str, kind: str, method: Any, path: Any) -> tuple[str, str]:
    """Return HTTP method and resource of a rule. The resource for every path of an HTTP API is ``DEFAULT``."""
    verb = str(method or "any").upper()
    verb = ANY if verb == "ANY" else verb
    if verb != ANY and verb not in VERBS:
        raise DocumentError(f"{place}.method: expected an HTTP method or 'any', got {method!r}")
    if not isinstance(path, str):
        raise DocumentError(f"{place}.path: expected a path such as /hello, got {path!r}")
    path = path.strip()
    if path.strip("/") in ("*", DEFAULT):
        if kind == "http":
            raise DocumentError(
                f"{place}.path: a REST API has no route for every path; write one for / and one for /{{proxy+}}, or "
                "httpApi"
            )
        if verb != ANY:
            raise DocumentError(f"{place}.path: the route of every path takes every method, not only {verb}")
        return ANY, DEFAULT
    path = path if path.startswith("/") else f"/{path}"
    return verb, resource_of(path, f"{place}.path")


def _setting_faults(place: str, key: str, overrides: Overrides) -> list[str]:
    """Return a fault for a setting that belongs in mesh.toml and is missing there."""
    if key.lower() == "cors":
        text = f'{place}: CORS belongs in mesh.toml: set [edge] cors = ["https://…"] there'
        return [] if overrides.cors else [text]
    text = f'{place}: access belongs in mesh.toml: set access = "authenticated", "key" or "public" there'
    return [] if overrides.access else [text]
