#!/bin/sh
# raft_promote: Makes a learner that has caught up a voter.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_promote","params":{"nodeId":4,"expectedVersion":14}}'
echo
