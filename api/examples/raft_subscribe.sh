#!/bin/sh
# raft_subscribe: Subscribes to a topic; its items come as raft_subscription. WebSocket only.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_subscribe","params":{"topic":"applied","options":{"fromHeight":1}}}'
echo
