#!/bin/bash
# OpenTelemetry's Python OTLP exporters take OTEL_EXPORTER_OTLP_TIMEOUT for seconds; the specification says milliseconds.
# With 1000, meant as one second, an export to a collector that takes four seconds is waited for; with 1 it is given up.
# https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options ("10s" as default, value in milliseconds)
# mesh/telemetry/otel_environment.py reads milliseconds and gives the exporters seconds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
cat > "$work/seen.py" <<'P'
import http.server, logging, os, sys, threading, time
from importlib.metadata import version

logging.disable(logging.CRITICAL)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter


class Slow(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(4)
        try:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
        except OSError:
            pass

    def log_message(self, *_):
        pass


class Timed(SpanExporter):
    def export(self, spans):
        began = time.monotonic()
        result = OTLPSpanExporter().export(spans)
        self.said = result.name, time.monotonic() - began
        return result


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
print("opentelemetry-exporter-otlp-proto-http", version("opentelemetry-exporter-otlp-proto-http"), "Python", sys.version.split()[0])
seen = {}
for value in ("1000", "1"):
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = value
    timed = Timed()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(timed))
    provider.get_tracer("t").start_span("s").end()
    seen[value] = timed.said
    print(f"OTEL_EXPORTER_OTLP_TIMEOUT={value}, collector answers after 4 s: {timed.said[0]} after {timed.said[1]:.1f} s")
same = seen["1000"][0] == "SUCCESS" and seen["1000"][1] > 3.5 and seen["1"][0] == "FAILURE" and seen["1"][1] < 3.5
print("The exporter takes the variable for seconds." if same else "CHANGED: the exporter takes the variable for milliseconds.")
sys.exit(not same)
P
env -i PATH="$PATH" HOME="$work" "$work/venv/bin/python" "$work/seen.py"
