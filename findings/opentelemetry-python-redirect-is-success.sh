#!/usr/bin/env bash
# The OTLP/HTTP exporter of OpenTelemetry for Python (1.45.2) takes a redirect for a success: it does not follow it, the
# spans are gone, the export is a SUCCESS, and nothing is logged.
#
# One would expect that it follows, or fails. OTLP, "OTLP/HTTP response": success is HTTP 200, every code but 200 and the
# few to be retried is a failure, and data is dropped with an error. The exporter asks `requests` whether the answer is
# "ok", which is true below 400. Output seen with Python 3.11 and requests 2.34.2, for an endpoint that has moved:
#
#   301: SUCCESS, 0 lines in the log, 0 spans where it points
#   302: SUCCESS, 0 lines in the log, 0 spans where it points
#   307: SUCCESS, 0 lines in the log, 0 spans where it points
#   308: SUCCESS, 0 lines in the log, 0 spans where it points
#   404: FAILURE, 1 lines in the log, 0 spans where it points
#
# A proxy that sends http to https makes a producer's spans vanish without a word, while those of blockraft's nodes show in
# blockraft_telemetry_export_failures_total and one line. Fails when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check \
  opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-sdk==1.45.2 requests==2.34.2
cat >"$dir/try.py" <<'PY'
import http.server
import logging
import sys
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider

CODES = [301, 302, 307, 308, 404]
arrived = []
lines = []


class Collector(http.server.BaseHTTPRequestHandler):
    """Has moved from /CODE to /v1/traces."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        is_old = self.path != "/v1/traces"
        if not is_old:
            arrived.append(self.path)
        self.send_response(int(self.path[1:]) if is_old else 200)
        if is_old:
            self.send_header("Location", "/v1/traces")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())


def export(port, code):
    arrived.clear()
    lines.clear()
    span = TracerProvider().get_tracer("moved").start_span("block")
    span.end()
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}/{code}")
    result = exporter.export([span])
    exporter.shutdown()
    print(f"{code}: {result.name}, {len(lines)} lines in the log, {len(arrived)} spans where it points")
    return result.name, len(lines), len(arrived)


logging.getLogger().addHandler(Lines(logging.WARNING))
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
seen = [export(server.server_port, code) for code in CODES]
if seen != [("SUCCESS", 0, 0)] * 4 + [("FAILURE", 1, 0)]:
    sys.exit("finding no longer holds")
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: a redirect loses the spans and is a success"
