#!/usr/bin/env bash
# What is shipped beside the binary holds: alert rules, boards, the systemd unit, the compose file. It writes
# nothing; a tool that the machine lacks is named, and its part left out.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "contract: left out: $1"; }

if command -v promtool >/dev/null; then
  promtool check rules dashboards/alerts.yml
  promtool check config --syntax-only dashboards/prometheus.yml
  # A file at a time on each core: promtool itself uses one.
  (cd dashboards && printf '%s\0' alerts*_test.yml | xargs -0 -n 1 -P "$(nproc)" promtool test rules)
else
  skip "alert rules (promtool, of Debian's package prometheus)"
fi
if command -v amtool >/dev/null; then
  amtool check-config dashboards/alertmanager.yml
else
  skip "alertmanager's configuration (amtool, of Debian's package prometheus-alertmanager)"
fi

# The boards are what their generator writes; each alert is on one, and each exported family is used.
if command -v python3 >/dev/null; then
  PYTHONDONTWRITEBYTECODE=1 python3 dashboards/generate.py --check
else
  skip "Grafana's boards (python3)"
fi

# It exits 0 for values it ignores, so whatever it says is an error.
if command -v systemd-analyze >/dev/null; then
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  sed 's,^ExecStart=/usr/local/bin/blockraft,ExecStart=/bin/true,' packaging/blockraft.service >"$dir/blockraft.service"
  said=$(systemd-analyze verify --man=no "$dir/blockraft.service" 2>&1) || true
  if [ -n "$said" ]; then
    echo "$said"
    echo "contract: systemd-analyze does not take packaging/blockraft.service"
    exit 1
  fi
else
  skip "the systemd unit (systemd-analyze)"
fi

if docker compose version >/dev/null 2>&1; then
  docker compose -f docker-compose.yml --profile load config -q
elif command -v docker-compose >/dev/null; then
  docker-compose -f docker-compose.yml --profile load config -q
else
  skip "the compose file (docker compose)"
fi

# Every alert has a runbook, and every runbook an alert.
missing=$(comm -3 \
  <(sed -n 's/^ *- alert: //p' dashboards/alerts.yml | sort) \
  <(cd dashboards/runbooks && ls | sed 's/\.md$//' | sort))
if [ -n "$missing" ]; then
  echo "contract: alerts without a runbook, or runbooks without an alert:"
  echo "$missing"
  exit 1
fi
echo "contract: what was looked at holds"
