#!/usr/bin/env bash
# Alertmanager 0.25.0 never tells the end of an alert that ends while another one inhibits it: not then, and not when the other
# one is over. Who was paged is left with it for good.
#
# One would expect that an inhibition holds back what is new, or that it only waits: an alert that the pager was told of ends
# there too, at the latest with the inhibition. But what is inhibited is taken out of the group before it is looked at what
# has to be told, and an alert that has ended is forgotten with the same look. Output seen with Debian's
# prometheus-alertmanager 0.25.0-1+b4, told to a webhook with `send_resolved`, a group for each alert:
#
#   PeerUnreachable of cluster b, not inhibited:  firing, resolved
#   NoLeader of cluster a, which inhibits:        firing, resolved
#   PeerUnreachable of cluster a, inhibited:      firing, and nothing ten looks after the inhibition was over
#
# A cluster whose nodes fail one after the other, and come back together, ends like that. In blockraft's alertmanager.yml
# all alerts of a cluster are one group, which ends as a whole, and NoLeader inhibits nothing that is faster than it. Fails
# when it is otherwise.
set -euo pipefail
version=0.25.0-1+b4
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
get() { apt-get download "prometheus-alertmanager=$version"; }
(cd "$dir" && { get || { apt-get update -qq && get; }; } >/dev/null 2>&1 && dpkg-deb -x prometheus-alertmanager_*.deb .)
cat >"$dir/try.py" <<'PY'
import datetime
import http.server
import json
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request

FOLDER = pathlib.Path(sys.argv[1])
FREE, SOURCE, TARGET = ("PeerUnreachable", "b"), ("NoLeader", "a"), ("PeerUnreachable", "a")
told = {FREE: [], SOURCE: [], TARGET: []}
no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Pager(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        for alert in json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"]:
            told[alert["labels"]["alertname"], alert["labels"]["cluster"]].append(alert["status"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, holds):
    for _ in range(600):
        try:
            if holds():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"finding no longer holds: after a minute not seen: {what}; the pager was told {told}")


def ask(path, body=None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body and json.dumps(body).encode(), {"Content-Type": "application/json"})
    with no_proxy.open(request, timeout=5) as answer:
        return answer.read()


def post(is_over, *alerts):
    """As Prometheus says it: until when they hold, if nothing else is said."""
    ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=0 if is_over else 1)
    ask("/api/v2/alerts", [{"labels": {"alertname": name, "cluster": cluster}, "endsAt": ends.isoformat()} for name, cluster in alerts])


def states():
    alerts = json.loads(ask("/api/v2/alerts"))
    return {(a["labels"]["alertname"], a["labels"]["cluster"]): a["status"]["state"] for a in alerts}


pager, port = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pager), free_port()
threading.Thread(target=pager.serve_forever, daemon=True).start()
(FOLDER / "alertmanager.yml").write_text(f"""
route: {{receiver: pager, group_by: [alertname, cluster], group_wait: 1s, group_interval: 1s, repeat_interval: 1h}}
receivers: [{{name: pager, webhook_configs: [{{url: 'http://127.0.0.1:{pager.server_port}/', send_resolved: true}}]}}]
inhibit_rules:
- source_matchers: [alertname = NoLeader]
  target_matchers: [alertname = PeerUnreachable]
  equal: [cluster]
""")
alertmanager = subprocess.Popen(
    [FOLDER / "usr/bin/prometheus-alertmanager", f"--config.file={FOLDER}/alertmanager.yml", f"--storage.path={FOLDER}/data",
     f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    until("Alertmanager is ready", lambda: ask("/-/ready"))
    post(False, FREE, TARGET)
    until("two alerts", lambda: told[FREE] == ["firing"] and told[TARGET] == ["firing"])
    post(False, SOURCE)
    until("the third", lambda: told[SOURCE] == ["firing"])
    until("an inhibition", lambda: states()[TARGET] == "suppressed")
    post(True, FREE, TARGET)
    until("the end of one", lambda: told[FREE] == ["firing", "resolved"] and TARGET not in states())
    # Some looks at the groups, once a second, before the inhibition is over; and ten behind it.
    time.sleep(3)
    post(True, SOURCE)
    until("the end of the third", lambda: told[SOURCE] == ["firing", "resolved"])
    time.sleep(10)
finally:
    alertmanager.kill()
    alertmanager.wait()
if told[TARGET] != ["firing"]:
    raise SystemExit(f"finding no longer holds: the pager was told {told}")
print("PeerUnreachable of cluster b, not inhibited: ", ", ".join(told[FREE]))
print("NoLeader of cluster a, which inhibits:       ", ", ".join(told[SOURCE]))
print("PeerUnreachable of cluster a, inhibited:     ", ", ".join(told[TARGET]) + ", and nothing ten looks after the inhibition was over")
PY
python3 "$dir/try.py" "$dir"
echo "finding holds: an alert that ends while it is inhibited is never told to have ended"
