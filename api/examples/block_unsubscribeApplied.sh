#!/bin/sh
# block_unsubscribeApplied: Ends a subscription of this connection, whichever method made it; false: there is none.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"block_unsubscribeApplied","params":{"subscription":"Q3l9dNwq2kXvB7aT"}}'
echo
