#!/usr/bin/env bash
# jsonrpclib-pelix 1.2.0 throws the `data` of an error away when its code is from -32700 to -32000, and keeps it for
# every other code.
#
# JSON-RPC 2.0, section 5.1: `data` is "a primitive or structured value that contains additional information about the
# error", on any error; -32099 to -32000 is the range that it leaves to servers for errors of their own. Output seen
# with Python 3.11, for the same error object with three codes:
#
#   -32030: ProtocolError (-32030, 'not here')
#   -32099: ProtocolError (-32099, 'not here')
#   -31000: AppError (-31000, 'not here', {'leader': 'n2'})
#
# So a caller of a server that uses the range made for it gets code and message, and must ask again for what it needs:
# blockraft answers `notLeader` with -32030 and the leader in `data`, and its message does not name the leader. Fails
# when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check jsonrpclib-pelix==1.2.0
cat >"$dir/try.py" <<'PY'
import http.server
import json
import threading

import jsonrpclib
from jsonrpclib.jsonrpc import AppError, ProtocolError

CODES = [-32030, -32099, -31000]


class Serve(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        error = {"code": asked["params"][0], "message": "not here", "data": {"leader": "n2"}}
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "error": error}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Serve)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = jsonrpclib.ServerProxy(f"http://127.0.0.1:{server.server_port}/")
seen = {}
for code in CODES:
    try:
        client.call(code)
    except ProtocolError as e:
        seen[code] = (isinstance(e, AppError), e.args[0])
        print(f"{code}: {type(e).__name__} {e.args[0]!r}")
lost = [(False, (code, "not here")) == seen[code] for code in CODES[:2]]
if not all(lost) or seen[-31000] != (True, (-31000, "not here", {"leader": "n2"})):
    raise SystemExit("finding no longer holds: data is kept, or lost, with every code alike")
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: jsonrpclib-pelix 1.2.0 loses the data of errors with a server's own codes"
