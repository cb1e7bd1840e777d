#!/usr/bin/env bash
# The OTLP exporters of OpenTelemetry for Python (1.45.2) read OTEL_EXPORTER_OTLP_TIMEOUT as seconds: the specification's own
# default, 10000, lets one export wait for 2.8 hours.
#
# One would expect milliseconds: OpenTelemetry's specification, "Environment variable specification", has every timeout and
# interval in milliseconds, and the exporters for other languages read this variable so. In Python the batch processor's
# variables beside it (OTEL_BSP_SCHEDULE_DELAY) are milliseconds. Output seen with Python 3.11, for a collector that takes
# the request and never answers:
#
#   OTEL_EXPORTER_OTLP_TIMEOUT=2    gave up after 2 s
#   OTEL_EXPORTER_OTLP_TIMEOUT=500  still waits after 5 s
#
# One environment for a producer in Python and the node beside it cannot suit both: blockraft's node takes 500 for half a
# second. Set it for each process, or give the producer's exporter its `timeout` in code. Fails when the package no longer
# does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check \
  opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-sdk==1.45.2
cat >"$dir/try.py" <<'PY'
import logging
import os
import socket
import sys
import threading
import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider

PATIENCE = 5
logging.disable()
# Connections are taken by the kernel, and nobody reads them.
silent = socket.create_server(("127.0.0.1", 0))
endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"


def seconds(value):
    """How long an export took, if it ended within the patience."""
    os.environ["OTEL_EXPORTER_OTLP_TIMEOUT"] = value
    span = TracerProvider().get_tracer("silent").start_span("block")
    span.end()
    exporter = OTLPSpanExporter(endpoint=endpoint)
    began = time.monotonic()
    thread = threading.Thread(target=exporter.export, args=([span],), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    took = None if thread.is_alive() else round(time.monotonic() - began)
    told = f"still waits after {PATIENCE} s" if took is None else f"gave up after {took} s"
    print(f"OTEL_EXPORTER_OTLP_TIMEOUT={value:4}{told}", flush=True)
    return took


seen = [seconds("2"), seconds("500")]
# The thread that waits keeps nobody.
if seen[0] not in (2, 3) or seen[1] is not None:
    print("finding no longer holds", file=sys.stderr)
    os._exit(1)
os._exit(0)
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: the variable is read as seconds"
