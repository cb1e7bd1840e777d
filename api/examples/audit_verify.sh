#!/bin/sh
# audit_verify: Looks at every record of the chain: changed, missing or swapped ones are named.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"audit_verify"}'
echo
