#!/bin/sh
# audit_list: What this node was asked to do, by whom, and how it ended; hash-chained.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"audit_list","params":{"limit":1}}'
echo
