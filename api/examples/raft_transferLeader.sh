#!/bin/sh
# raft_transferLeader: Hands leadership to a voter and returns when it leads. Without `to`: to the fittest one.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_transferLeader","params":{"to":2,"timeoutMs":3000}}'
echo
