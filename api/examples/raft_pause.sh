#!/bin/sh
# raft_pause: Keeps this node from leading while another can, also after a restart; a leader hands over first.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_pause","params":{"reason":"patching"}}'
echo
