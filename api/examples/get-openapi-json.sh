#!/bin/sh
# GET /openapi.json: The OpenAPI document: these routes.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/openapi.json"
echo
