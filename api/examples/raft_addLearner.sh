#!/bin/sh
# raft_addLearner: Adds a learner: it follows, and is counted in no quorum. Dialled first: cluster and node id must be right.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_addLearner","params":{"nodeId":4,"peerAddr":"127.0.0.1:7504","apiAddr":"127.0.0.1:7404","expectedVersion":1}}'
echo
