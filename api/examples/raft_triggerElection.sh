#!/bin/sh
# raft_triggerElection: Has this node stand for election where nobody leads; with force it asks the leader to hand over to it.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_triggerElection","params":{}}'
echo
