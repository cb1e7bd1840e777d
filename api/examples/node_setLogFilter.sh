#!/bin/sh
# node_setLogFilter: Changes which lines this node logs, for good or for a while.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"node_setLogFilter","params":{"filter":"info,blockraft::leadership=debug","forMs":600000}}'
echo
