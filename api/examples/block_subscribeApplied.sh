#!/bin/sh
# block_subscribeApplied: Applied blocks, in log order, as block_applied; from a place in the history or from now on. What a slow reader misses is told as a gap and follows. WebSocket only.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"block_subscribeApplied","params":{"fromHeight":1}}'
echo
