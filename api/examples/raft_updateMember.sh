#!/bin/sh
# raft_updateMember: Gives a member another address or name; answers once it is reached there.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_updateMember","params":{"nodeId":2,"peerAddr":"127.0.0.1:7512"}}'
echo
