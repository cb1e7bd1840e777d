#!/bin/sh
# GET /v1/blocks/{height}: The block at a height.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/v1/blocks/1"
echo
