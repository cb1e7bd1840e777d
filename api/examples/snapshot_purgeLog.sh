#!/bin/sh
# snapshot_purgeLog: Purges this node's log up to an index, never beyond its newest snapshot. Answers where it begins then.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"snapshot_purgeLog","params":{}}'
echo
