#!/bin/sh
# POST /v1/blocks: Proposes a block given as protobuf: the fast path for one block at a time.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
endpoint="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"raft_leader"}' | sed 's/.*"leaderApi":"\([^"]*\)".*/\1/')"
printf '\010\001\042\001\241\050\200\200\250\261\343\237\347\313\027\062\001\001\072\002\002\003' | curl -sS "http://$endpoint/v1/blocks" -H 'Content-Type: application/x-protobuf' --data-binary @-
echo
