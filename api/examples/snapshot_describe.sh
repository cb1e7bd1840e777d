#!/bin/sh
# snapshot_describe: A snapshot and its files, with their checksums.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"snapshot_describe","params":{"id":"19a1f3c2b40-1"}}'
echo
