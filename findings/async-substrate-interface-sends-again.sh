#!/usr/bin/env bash
# async-substrate-interface 2.2.1 sends a request again, by itself and with the same id, when its connection breaks before
# the answer is there. The caller gets one answer, and is not told that there were two requests.
#
# One would expect an error, and no second request unasked: a request that is left without an answer may
# have been carried out, and only its caller knows whether twice does harm. Output seen with Python 3.11 and
# websockets 17.4, against a server that takes the first request and drops the connection:
#
#   the server was asked 2 times: [('transfer', 'Pq1'), ('transfer', 'Pq1')]
#   the caller was told: done
#
# A leader that dies while it hands over is asked once more when it is back, or whoever has its address then. What acts
# wants a name of its own in such a client: blockraft's methods that act take an `operationId`, and act once for it.
# Fails when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check async-substrate-interface==2.2.1 websockets==17.4
cat >"$dir/try.py" <<'PY'
import asyncio
import json
import logging

import async_substrate_interface
from websockets.asyncio.server import serve

logging.disable(logging.CRITICAL)
asked = []


async def server(socket):
    async for text in socket:
        request = json.loads(text)
        asked.append((request["method"], request["id"]))
        if len(asked) == 1:
            socket.transport.abort()
            return
        await socket.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": "done"}))


async def main():
    async with serve(server, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = async_substrate_interface.AsyncSubstrateInterface(f"ws://127.0.0.1:{port}", ws_shutdown_timer=None)
        try:
            told = (await asyncio.wait_for(client.rpc_request("transfer", []), 20))["result"]
        except Exception as e:
            told = repr(e)
    print(f"the server was asked {len(asked)} times: {asked}")
    print(f"the caller was told: {told}")
    if len(asked) != 2 or asked[0] != asked[1] or told != "done":
        raise SystemExit("finding no longer holds: it does not send again, or says so")


asyncio.run(main())
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: async-substrate-interface 2.2.1 sends a request again after a broken connection"
