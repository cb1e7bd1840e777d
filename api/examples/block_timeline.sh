#!/bin/sh
# block_timeline: Where the time of the block at a height went, on every node that remembers it.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"block_timeline","params":{"height":1}}'
echo
