#!/bin/sh
# GET /readyz: Whether clients can be sent here. Paused nodes, followers and learners are ready.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/readyz"
echo
