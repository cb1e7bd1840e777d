#!/usr/bin/env bash
# Prometheus 2.42.0 stores one sample of a series that a target exposes twice, and says so nowhere, not in its
# log at level warn either: the target stays up, and scrape_samples_scraped and
# scrape_samples_post_metric_relabeling count both.
#
# A program that registers two collectors for one metric, with different values, exports such a text. Output
# seen with Debian's prometheus 2.42.0+ds-5+deb12u1 for three lines, two of them the same series:
#
#   up                                        1
#   scrape_samples_scraped                    3
#   scrape_samples_post_metric_relabeling     3
#   doubled_total                             1
#   series stored                             2
#
# The first of the two values is kept, the second (of 2) is gone. So a test of an exporter must hold lines,
# scraped samples and stored series against each other, as blockraft's does; `up` proves nothing. Fails when
# the server no longer does this.
set -euo pipefail
version=2.42.0+ds-5+deb12u1
dir=$(mktemp -d)
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
# Downloaded and unpacked, not installed: the package would start a server. apt drops its privileges.
chmod 755 "$dir"
(cd "$dir" && { apt-get download "prometheus=$version" || { apt-get update -qq && apt-get download "prometheus=$version"; }; } >/dev/null 2>&1 &&
  dpkg-deb -x prometheus_*.deb .)
cat >"$dir/target.py" <<'PY'
import http.server
import sys

TEXT = b"""# TYPE doubled_total counter
doubled_total 1
doubled_total 2
# TYPE other gauge
other 5
"""


class Target(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Target)
print(server.server_port, flush=True)
server.serve_forever()
PY
python3 "$dir/target.py" >"$dir/port" &
pids+=($!)
until [ -s "$dir/port" ]; do sleep 0.1; done
web=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$dir/prometheus.yml" <<YML
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs: [{job_name: target, static_configs: [{targets: ['127.0.0.1:$(cat "$dir/port")']}]}]
YML
"$dir/usr/bin/prometheus" --config.file="$dir/prometheus.yml" --storage.tsdb.path="$dir/data" \
  --web.listen-address="127.0.0.1:$web" --log.level=error >/dev/null 2>&1 &
pids+=($!)
value() {
  curl -sfG --noproxy '*' "http://127.0.0.1:$web/api/v1/query" --data-urlencode "query=$1" |
    python3 -c 'import json, sys; r = json.load(sys.stdin)["data"]["result"]; print(r[0]["value"][1] if r else "")'
}
for _ in $(seq 200); do
  [ "$(value 'count(doubled_total)' 2>/dev/null)" = 1 ] && break
  sleep 0.1
done
got=()
for query in up scrape_samples_scraped scrape_samples_post_metric_relabeling doubled_total; do
  got+=("$(value "$query")")
  printf '%-40s  %s\n' "$query" "${got[-1]}"
done
got+=("$(value 'count({__name__=~"doubled_total|other"})')")
printf '%-40s  %s\n' 'series stored' "${got[-1]}"
if [ "${got[*]}" != "1 3 3 1 2" ]; then
  echo "finding no longer holds: the doubled series is not dropped in silence"
  exit 1
fi
echo "finding holds: Prometheus $version drops a doubled series in silence"
