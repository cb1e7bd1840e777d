#!/usr/bin/env bash
# Prometheus 2.42.0 ends an alert when it becomes true twice: a rule whose results differ by nothing but the name of the metric
# fails as soon as there are two of them, so that the second fault makes Alertmanager tell the end of the first.
#
# One would expect one alert, or two, and never fewer than before. But an alert has no metric name; two results without it are
# the same labels, the evaluation fails, and a rule that fails sends nothing: what was told to fire runs out after four
# intervals. The same goes for a rule whose `labels` write over the label that tells its results apart. `promtool check
# rules` finds nothing. Output seen with Debian's prometheus 2.42.0+ds-5+deb12u1 and prometheus-alertmanager 0.25.0-1+b4:
#
#   promtool check rules: SUCCESS: 2 rules found
#   apply hangs:          the pager is told "firing"
#   append hangs as well: the pager is told "resolved"; the rule's health is err, Prometheus itself still shows it firing
#   append alone hangs:   the pager is told "firing"
#   the rule with `max without (__name__)` around it: told "firing", once
#
# It is the worse fault that is told as recovery. What shows it is a line in Prometheus' log, its page of rules, and
# prometheus_rule_evaluation_failures_total, on which an alert of its own is worth having. No rule of blockraft's takes metrics
# by a pattern of their names, or writes over a label. Fails when it is otherwise.
set -euo pipefail
prometheus=2.42.0+ds-5+deb12u1
alertmanager=0.25.0-1+b4
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
get() { apt-get download "prometheus=$prometheus" "prometheus-alertmanager=$alertmanager"; }
(cd "$dir" && { get || { apt-get update -qq && get; }; } >/dev/null 2>&1 && for deb in *.deb; do dpkg-deb -x "$deb" .; done)
cat >"$dir/rules.yml" <<'YML'
groups:
- name: hangs
  interval: 1s
  rules:
  - alert: Hangs
    expr: '{__name__=~"apply_hangs|append_hangs"} == 1'
  - alert: HangsByTarget
    expr: 'max without (__name__) ({__name__=~"apply_hangs|append_hangs"}) == 1'
YML
cat >"$dir/try.py" <<'PY'
import http.server
import json
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

FOLDER = pathlib.Path(sys.argv[1])
hanging = set()
told = {"Hangs": [], "HangsByTarget": []}
no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TargetAndPager(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = "".join(f"{name}_hangs {int(name in hanging)}\n" for name in ("apply", "append")).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told[message["groupLabels"]["alertname"]].append(message["status"])
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


def ask(path):
    with no_proxy.open(f"http://127.0.0.1:{web}/api/v1/{path}", timeout=5) as answer:
        return json.load(answer)["data"]


def the(name):
    (group,) = ask("rules")["groups"]
    return next(rule for rule in group["rules"] if rule["name"] == name)


own = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TargetAndPager)
threading.Thread(target=own.serve_forever, daemon=True).start()
web, am = free_port(), free_port()
(FOLDER / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
rule_files: [{FOLDER}/rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{am}']}}]}}]}}
scrape_configs: [{{job_name: target, static_configs: [{{targets: ['127.0.0.1:{own.server_port}']}}]}}]
""")
(FOLDER / "alertmanager.yml").write_text(f"""
route: {{receiver: pager, group_by: [alertname], group_wait: 1s, group_interval: 1s, repeat_interval: 1h}}
receivers: [{{name: pager, webhook_configs: [{{url: 'http://127.0.0.1:{own.server_port}/'}}]}}]
""")
checked = subprocess.run([FOLDER / "usr/bin/promtool", "check", "rules", FOLDER / "rules.yml"], capture_output=True, text=True)
print("promtool check rules:", checked.stdout.strip().splitlines()[-1].strip())
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
servers = [
    subprocess.Popen([FOLDER / "usr/bin/prometheus-alertmanager", f"--config.file={FOLDER}/alertmanager.yml", f"--storage.path={FOLDER}/alerts",
                      f"--web.listen-address=127.0.0.1:{am}", "--cluster.listen-address="], **quiet),
    subprocess.Popen([FOLDER / "usr/bin/prometheus", f"--config.file={FOLDER}/prometheus.yml", f"--storage.tsdb.path={FOLDER}/data",
                      f"--web.listen-address=127.0.0.1:{web}", "--rules.alert.resend-delay=1s"], **quiet),
]
try:
    until("Prometheus knows Alertmanager, and has scraped", lambda: ask("alertmanagers")["activeAlertmanagers"] and the("Hangs")["health"] == "ok")
    hanging.add("apply")
    until("an alert", lambda: told["Hangs"] == ["firing"] and told["HangsByTarget"] == ["firing"])
    print('apply hangs:          the pager is told "firing"')
    hanging.add("append")
    until("the end of it", lambda: told["Hangs"] == ["firing", "resolved"])
    rule, n = the("Hangs"), len(ask("query?query=" + urllib.parse.quote('{__name__=~".*_hangs"} == 1'))["result"])
    assert n == 2 and "same labelset" in rule["lastError"], (n, rule)
    print(f'append hangs as well: the pager is told "resolved"; the rule\'s health is {rule["health"]}, Prometheus itself still shows it {rule["state"]}')
    hanging.remove("apply")
    until("the alert again", lambda: told["Hangs"] == ["firing", "resolved", "firing"])
    print('append alone hangs:   the pager is told "firing"')
    assert told["HangsByTarget"] == ["firing"], told
    print('the rule with `max without (__name__)` around it: told "firing", once')
finally:
    for server in servers:
        server.kill()
        server.wait()
PY
python3 "$dir/try.py" "$dir"
echo "finding holds: an alert that is true twice is told to have ended"
