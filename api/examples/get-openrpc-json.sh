#!/bin/sh
# GET /openrpc.json: The OpenRPC document: every JSON-RPC method.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/openrpc.json"
echo
