#!/bin/sh
# block_range: Blocks from a height on: at least one, none above the head, at most maxBytes of JSON.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"block_range","params":{"fromHeight":1,"limit":10}}'
echo
