#!/bin/bash
# An empty OTEL_SPAN_*_LIMIT takes the limit away in OpenTelemetry's Python SDK; the specification says that an empty value is an
# unset one, so that the default (128) holds. A shell's `export OTEL_SPAN_EVENT_COUNT_LIMIT=` or a compose file's empty entry does it.
# https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#parsing-empty-value
# mesh/telemetry/otel_environment.py takes empty values out of the environment.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check opentelemetry-sdk==1.45.2
cat > "$work/seen.py" <<'P'
import sys
from importlib.metadata import version

from opentelemetry.sdk.trace import TracerProvider

span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("s")
for number in range(1000):
    span.add_event(str(number))
print("opentelemetry-sdk", version("opentelemetry-sdk"), "Python", sys.version.split()[0], "- events kept of 1000:", len(span.events))
sys.exit(len(span.events) != int(sys.argv[1]))
P
run() { env -i PATH="$PATH" HOME="$work" "$@"; }
run "$work/venv/bin/python" "$work/seen.py" 128
run OTEL_SPAN_EVENT_COUNT_LIMIT= "$work/venv/bin/python" "$work/seen.py" 1000
echo "An empty OTEL_SPAN_EVENT_COUNT_LIMIT is no limit, not the default."
