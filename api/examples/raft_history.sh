#!/bin/sh
# raft_history: What happened here: leaderships, membership, snapshots, pauses, starts and stops.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_history","params":{"limit":2}}'
echo
