#!/bin/sh
# GET /v1/snapshots/{id}: A snapshot as a tar archive, which blockraft snapshot restore takes.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
id="$(curl -sS "http://$endpoint/" -H 'Content-Type: application/json' \
  -d '{"jsonrpc":"2.0","id":1,"method":"snapshot_create"}' | sed 's/.*"result":{"id":"\([^"]*\)".*/\1/')"
curl -sS "http://$endpoint/v1/snapshots/$id" -o "$id.tar"
echo
