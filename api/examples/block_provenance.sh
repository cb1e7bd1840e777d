#!/bin/sh
# block_provenance: Who proposed the block at a height, when, and where it stands in the log.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"block_provenance","params":{"height":1}}'
echo
