#!/bin/sh
# GET /: The status page, for a browser: only where Accept names text/html.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sS "http://$endpoint/" -H 'Accept: text/html'
echo
