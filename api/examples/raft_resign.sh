#!/bin/sh
# raft_resign: Has this node give leadership to the fittest voter. Nothing to do and nobody to give it to are outcomes.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_resign","params":{"reason":"maintenance"}}'
echo
