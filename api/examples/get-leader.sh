#!/bin/sh
# GET /leader: raft_leader; 200 on a ready leader alone, for load balancers.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/leader"
echo
