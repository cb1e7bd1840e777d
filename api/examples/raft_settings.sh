#!/bin/sh
# raft_settings: The settings of the cluster in force, as flat TOML keys, and the log index that set them.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_settings"}'
echo
