#!/bin/sh
# block_propose: Proposes a block; answers once it is committed and applied here. The same block again is a success.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"block_propose","params":{"block":{"height":1,"hash":"0xa1","timestamp":"1700000000000000000","header":"0x01","data":"0x0203"}}}'
echo
