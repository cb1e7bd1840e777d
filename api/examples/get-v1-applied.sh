#!/bin/sh
# GET /v1/applied: Applied blocks as server-sent events: block, gap, caughtUp, end. The id of an event is the reader's position. A stream that is refused for now says why in its one event.
set -eu
endpoint="${BLOCKRAFT_ENDPOINTS:-127.0.0.1:7401}"
endpoint="${endpoint%%,*}"
curl -sSN --max-time 2 "http://$endpoint/v1/applied?fromHeight=1" || [ $? = 28 ]
echo
