"""OpenTelemetry's environment variables by their specification, with the SDK's own exporters and real collectors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from telemetry_parts import GrpcCollector, HttpCollector, attributes, call_of

from mesh.call import Call
from mesh.telemetry import Telemetry, otel_environment
from mesh.telemetry.otel_environment import exporters, normalize, number, protocol, take_warnings, timeout

Start = Callable[..., Telemetry]
DOCS = Path(__file__).parent.parent.parent / "docs" / "operations.md"


async def nothing(call: Call) -> None:
    pass


def settled(**environ: str) -> tuple[dict[str, str], list[str]]:
    """What is left of an environment, and what is said of the rest."""
    take_warnings()
    normalize(environ)
    return environ, take_warnings()


# -- values --


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("OTEL_TRACES_SAMPLER", " ", None),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "", None),
        ("OTEL_SERVICE_NAME", " shop ", "shop"),
        ("OTEL_SDK_DISABLED", "TRUE", "true"),
        ("OTEL_TRACES_SAMPLER", "AlwaysOn".replace("sO", "s_o"), "always_on"),
        ("OTEL_PROPAGATORS", "TraceContext, baggage,,baggage", "tracecontext,baggage"),
        ("OTEL_TRACES_EXPORTER", "OTLP,Console", "otlp,console"),
        ("OTEL_METRICS_EXPORTER", "none", "none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "GRPC", "grpc"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", " https://c:4318/a ", "https://c:4318/a"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=Basic abc==", "api-key=a%20b,x=Basic%20abc=="),
        ("OTEL_EXPORTER_OTLP_HEADERS", 'k=a;b"c\\d, x=50%, y=\u00fc%2C', "k=a%3Bb%22c%5Cd,x=50%25,y=%C3%BC%2C"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b=x%2Cy,", "a=1,b=x%2Cy"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "200.5", "200.5"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "0", "0"),
        ("OTEL_LOG_LEVEL", "Debug", "debug"),
        ("OTEL_PYTHON_SOMETHING", "as it is", "as it is"),
        ("MESH_STATE", " ", " "),
    ],
)
def test_a_value_in_its_usual_form(name: str, value: str, kept: str | None) -> None:
    environ, ignored = settled(**{name: value})
    assert (environ.get(name), ignored) == (kept, [])


@pytest.mark.parametrize(
    ("name", "value", "kept", "text"),
    [
        ("OTEL_BSP_SCHEDULE_DELAY", "soon", None, "expected a number of milliseconds from 1 to 2147483647, not 'soon'"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", None, "from 1 to"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", None, "expected an integer from 1 to 2147483647, not '-1'"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1.5", None, "expected an integer"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "1_000", None, "expected an integer"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0", None, "from 1 to"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "inf", None, "expected a number"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan", None, "expected a number of milliseconds from 0 to"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10s", None, "not '10s'; the default is used"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "9" * 400, None, "…'"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "many", None, "expected an integer from 0"),
        ("OTEL_SDK_DISABLED", "1", None, "expected true or false, not '1'; the default, false, is used"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", None, "expected always_on, "),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "some", None, "expected always_on, always_off or trace_based"),
        (
            "OTEL_TRACES_EXPORTER",
            "jaeger",
            None,
            "'jaeger' of OTEL_TRACES_EXPORTER is left out: expected console, none, otlp",
        ),
        ("OTEL_TRACES_EXPORTER", "jaeger,otlp", "otlp", "'jaeger' of OTEL_TRACES_EXPORTER is left out"),
        ("OTEL_LOGS_EXPORTER", "otlp", None, "logs are JSON lines on standard error, and not exported"),
        ("OTEL_PROPAGATORS", "tracecontext,b4", "tracecontext", "'b4' of OTEL_PROPAGATORS is left out"),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json",
            None,
            "expected http/protobuf or grpc, not 'http/json'; http/protobuf is",
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "brotli", None, "expected gzip, deflate or none"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "collector:4318",
            None,
            "expected a URL such as http://localhost:4318, not 'coll",
        ),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://u:secret@c", None, "not 'ftp://c'; it counts as unset"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:port", None, "not 'http://c:port'"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://[::1", None, "expected a URL"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "a=b,secret",
            "a=b",
            "entry 2 of OTEL_EXPORTER_OTLP_HEADERS is left out: expected name=",
        ),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%0Db", None, "entry 1 (x-key) of OTEL_EXPORTER_OTLP_HEADERS"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=%E4%B8%96", None, "entry 1 (x-key) of OTEL_EXPORTER_OTLP_HEADERS"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c", None, "entry 1 of OTEL_EXPORTER_OTLP_HEADERS is left out"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,b", "a=1", "'b' of OTEL_RESOURCE_ATTRIBUTES is left out: expected key=value"),
        (
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "/nowhere/ca.pem",
            None,
            "expected a file that can be read, not '/nowhere/ca.pem'",
        ),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/", None, "expected a file that can be read"),
        ("OTEL_LOG_LEVEL", "loud", None, "expected none, error, "),
    ],
)
def test_a_value_that_cannot_be_used_is_ignored(name: str, value: str, kept: str | None, text: str) -> None:
    environ, [ignored] = settled(**{name: value})
    assert environ.get(name) == kept
    assert text in ignored
    assert name in ignored
    assert "secret" not in ignored
    normalize(environ)  # in a process that inherits it
    assert take_warnings() == []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("0.25", "0.25"),
        (".5", ".5"),
        ("1e-3", "1e-3"),
        ("2", "1.0"),
        ("-1", "1.0"),
        ("nan", "1.0"),
        ("x", "1.0"),
        ("", "1.0"),
    ],
)
def test_the_ratio_of_a_sampler(value: str, kept: str) -> None:
    environ, ignored = settled(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG=value)
    assert environ["OTEL_TRACES_SAMPLER_ARG"] == kept
    assert bool(ignored) == (value not in ("", kept))


def test_grpc_takes_an_address_without_a_scheme() -> None:
    environ, ignored = settled(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317")
    assert (environ["OTEL_EXPORTER_OTLP_ENDPOINT"], ignored) == ("collector:4317", [])
    one = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4317"}
    assert settled(**one)[1] == []


@pytest.mark.parametrize(
    ("said_", "traces", "metrics"),
    [
        ({"COMPRESSION": "gzip"}, "gzip", "gzip"),
        ({"COMPRESSION": "gzip", "TRACES_COMPRESSION": "none"}, None, "gzip"),
        ({"COMPRESSION": "none", "METRICS_COMPRESSION": "GZIP"}, None, "gzip"),
        ({"COMPRESSION": "deflate", "METRICS_PROTOCOL": "grpc"}, "deflate", None),
    ],
)
def test_compression_is_said_for_each_signal(said_: dict[str, str], traces: str | None, metrics: str | None) -> None:
    environ, _ = settled(**{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in said_.items()})
    assert environ.get("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION") == traces
    assert environ.get("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION") == metrics


def test_what_is_said_of_one_signal_wins() -> None:
    environ = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1000", "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "250"}
    assert (timeout(environ, "traces"), timeout(environ, "metrics"), timeout({}, "traces")) == (1.0, 0.25, 10.0)
    assert timeout({"OTEL_EXPORTER_OTLP_TIMEOUT": "0"}, "traces") == otel_environment.NO_LIMIT_TIMEOUT
    environ = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    assert (protocol(environ, "traces"), protocol(environ, "metrics")) == ("http/protobuf", "grpc")
    assert number({"OTEL_BSP_MAX_QUEUE_SIZE": "7"}, "OTEL_BSP_MAX_QUEUE_SIZE", 5) == 7
    assert number({"OTEL_BSP_MAX_QUEUE_SIZE": "x"}, "OTEL_BSP_MAX_QUEUE_SIZE", 5) == 5


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, None),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, []),
        ({"OTEL_TRACES_EXPORTER": "console,otlp"}, ["console", "otlp"]),
    ],
)
def test_where_traces_go(environ: dict[str, str], names: list[str] | None) -> None:
    assert exporters(environ, "traces") == names


# -- with the SDK's exporters --


async def exported(telemetry: Telemetry) -> None:
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"])
async def test_a_time_out_is_in_milliseconds(start: Start, collector: HttpCollector, variable: str) -> None:
    collector.delay = 30
    environ = {"OTEL_EXPORTER_OTLP_TIMEOUT": "60000", variable: "400"}
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="10", **environ)
    began = monotonic()
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush(20)
    assert monotonic() - began < 15
    assert telemetry.dropped["export_failed"] == 1


async def test_a_time_out_over_grpc_is_in_milliseconds(start: Start, collector: HttpCollector) -> None:
    """A server that takes the connection and never answers: it does not even speak HTTP/2."""
    collector.answer = 0
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_TIMEOUT="500", OTEL_BSP_SCHEDULE_DELAY="10",
    )  # fmt: skip
    began = monotonic()
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush(20)
    assert monotonic() - began < 15
    assert telemetry.dropped["export_failed"] == 1


def test_a_time_out_of_metrics_is_in_milliseconds(start: Start, collector: HttpCollector) -> None:
    collector.delay = 30
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp", OTEL_TRACES_EXPORTER="none",
        OTEL_EXPORTER_OTLP_METRICS_TIMEOUT="300",
    )  # fmt: skip
    telemetry.meter_provider.get_meter("m").create_counter("c").add(1)
    began = monotonic()
    telemetry.meter_provider.force_flush(20_000)
    assert monotonic() - began < 15
    assert collector.metrics == []


@pytest.mark.parametrize(
    ("endpoints", "path"),
    [
        ({"ENDPOINT": ""}, "/v1/traces"),
        ({"ENDPOINT": "/"}, "/v1/traces"),
        ({"ENDPOINT": "/base/"}, "/base/v1/traces"),
        ({"TRACES_ENDPOINT": "/mine"}, "/mine"),
        ({"TRACES_ENDPOINT": "/mine/"}, "/mine/"),
        ({"TRACES_ENDPOINT": ""}, "/"),
        ({"ENDPOINT": "/base", "TRACES_ENDPOINT": "/mine"}, "/mine"),
    ],
)
async def test_the_path_of_an_endpoint(
    start: Start, collector: HttpCollector, endpoints: dict[str, str], path: str
) -> None:
    await exported(start(**{f"OTEL_EXPORTER_OTLP_{name}": collector.url + said for name, said in endpoints.items()}))
    assert collector.paths == [path]


async def test_headers_are_decoded_and_bad_ones_left_out(
    start: Start, collector: HttpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    headers = "Api-Key=a%20b%3D,broken,authorization=Basic dXNlcg==,token=mel;lon\\"
    await exported(start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_HEADERS=headers))
    [found] = collector.headers
    assert (found["api-key"], found["authorization"], found["token"]) == ("a b=", "Basic dXNlcg==", "mel;lon\\")
    assert "entry 2 of OTEL_EXPORTER_OTLP_HEADERS is left out" in caplog.text
    assert "broken" not in caplog.text
    assert "lon" not in caplog.text


@pytest.mark.parametrize(("value", "encoding"), [("gzip", "gzip"), ("GZip", "gzip"), ("none", None), ("x", None)])
async def test_compression(start: Start, collector: HttpCollector, value: str, encoding: str | None) -> None:
    await exported(start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_EXPORTER_OTLP_COMPRESSION=value))
    assert collector.headers[0].get("content-encoding") == encoding


@pytest.mark.parametrize("value", ["none", "gzip", "deflate", "x"])
async def test_compression_over_grpc(start: Start, grpc_collector: GrpcCollector, value: str) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": grpc_collector.url, "OTEL_EXPORTER_OTLP_PROTOCOL": "GRPC"}
    await exported(start(**environ, OTEL_EXPORTER_OTLP_COMPRESSION=value))
    assert len(grpc_collector.requests) == 1


async def test_the_resource(start: Start, collector: HttpCollector) -> None:
    said_ = "team=a%2Cb,nothing,service.name=other"
    await exported(
        start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_RESOURCE_ATTRIBUTES=said_, OTEL_SERVICE_NAME=" ")
    )
    told = attributes(collector.requests[0].resource_spans[0].resource)
    assert (told["team"], told["service.name"]) == ("a,b", "other")


async def test_a_sampler_that_does_not_exist_samples_all(start: Start, collector: HttpCollector) -> None:
    for value in ("xray", "Always_Off"):
        await exported(start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_SAMPLER=value))
    assert len(collector.all()) == 1


async def test_unknown_exporters_are_as_unsaid(start: Start, collector: HttpCollector) -> None:
    await exported(start(OTEL_TRACES_EXPORTER="jaeger", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url))
    await exported(start(OTEL_TRACES_EXPORTER="jaeger,zipkin", default_endpoint=collector.url))
    assert len(collector.all()) == 2


async def test_an_exporter_that_cannot_be_made_is_left_out(
    start: Start, collector: HttpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    name = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER"
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **{name: "nobody"})
    await exported(telemetry)
    assert collector.requests == []
    assert "the exporter otlp_proto_http of traces is left out: RuntimeError" in caplog.text


def test_the_log_level_is_that_of_opentelemetry(start: Start) -> None:
    import logging

    logger = logging.getLogger("opentelemetry")
    before = logger.level
    try:
        start(OTEL_LOG_LEVEL="ERROR")
        assert logger.level == logging.ERROR
        assert logging.getLogger("opentelemetry.exporter").level == logging.WARNING
    finally:
        logger.setLevel(before)


# -- whatever is said, the start goes on --

NAMES = sorted(otel_environment._CHECKS)
GARBAGE = st.one_of(
    st.sampled_from(
        ["", " ", "x", "-1", "0", "1e400", "nan", "inf", "none", "true", ",", "=", "a=b", "%", "http://", "://"]
    ),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(environ=st.dictionaries(st.sampled_from(NAMES), GARBAGE, max_size=6), protocol_=st.sampled_from(["grpc", ""]))
def test_no_value_keeps_a_component_from_starting(
    start: Start, collector: HttpCollector, environ: dict[str, str], protocol_: str
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    said_ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol_, **environ}
    start(**said_).close(0.1)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_PROPAGATORS": "b4"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "-5"},
        {
            "OTEL_TRACES_EXPORTER": "jaeger",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "10s",
        },
        {"OTEL_METRICS_EXEMPLAR_FILTER": "x", "OTEL_METRIC_EXPORT_INTERVAL": "0", "OTEL_METRICS_EXPORTER": "otlp"},
    ],
)
def test_what_the_sdk_reads_while_it_is_imported(environ: dict[str, str]) -> None:
    """In a new process: the SDK, or the API, would end it with a traceback."""
    code = (
        "import logging; logging.basicConfig(); from mesh.telemetry import configure; "
        "configure('a', version='1').close(0.1)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    for name in environ:
        assert ran.stderr.count(name) == (0 if name == "OTEL_METRICS_EXPORTER" else 1), ran.stderr


def test_every_variable_is_described() -> None:
    text = DOCS.read_text(encoding="utf-8").replace("\\|", "/")
    rows = re.findall(r"^\| (`OTEL_.*?) \|", text, re.MULTILINE)
    known = {name for row in rows for word in re.findall(r"`([^`]+)`", row) for name in named(word)}
    assert [name for name in NAMES if name not in known] == []


def named(word: str) -> list[str]:
    """The variables that a pattern of the table means: ``A_[B_/C_]D`` is ``A_D``, ``A_B_D`` and ``A_C_D``."""
    before, bracket, rest = word.partition("[")
    if not bracket:
        return [word]
    inside, _, after = rest.partition("]")
    return [before + part + end for part in ("", *inside.split("/")) for end in named(after)]
