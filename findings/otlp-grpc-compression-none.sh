#!/bin/bash
# OpenTelemetry's Python OTLP exporters differ in OTEL_EXPORTER_OTLP_COMPRESSION=none, which the specification names as the value
# for no compression: the HTTP exporter takes it, the gRPC exporter cannot be made with it.
# https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options
# mesh/telemetry/otel_environment.py says nothing where `none` is meant.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check opentelemetry-exporter-otlp==1.45.2
cat > "$work/seen.py" <<'P'
import os, sys
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as OverGrpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

os.environ["OTEL_EXPORTER_OTLP_COMPRESSION"] = "none"
print("opentelemetry-exporter-otlp", version("opentelemetry-exporter-otlp"), "Python", sys.version.split()[0])
seen = {}
for name, exporter in (("http/protobuf", OverHttp), ("grpc", OverGrpc)):
    try:
        exporter().shutdown()
        seen[name] = "made"
    except Exception as error:
        seen[name] = f"{type(error).__name__}: {error}"
    print(f"OTEL_EXPORTER_OTLP_COMPRESSION=none, {name}: {seen[name]}")
same = seen["http/protobuf"] == "made" and seen["grpc"].startswith("InvalidCompressionValueException")
print("The gRPC exporter does not know none." if same else "CHANGED: both take none.")
sys.exit(not same)
P
env -i PATH="$PATH" HOME="$work" "$work/venv/bin/python" "$work/seen.py"
