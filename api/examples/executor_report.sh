#!/bin/sh
# executor_report: The executor beside this node says how far it is, and learns the fence in the same call.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"executor_report","params":{"height":0,"hash":"0x","healthy":true}}'
echo
