#!/bin/sh
# GET /metrics: Prometheus text, or OpenMetrics by Accept.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/metrics"
echo
