#!/usr/bin/env bash
# web3.py 7.16.0 (8.0.0 too) lets a request over its WebSocket provider wait for the whole `request_timeout`, 30 s by
# default, when the server closes the connection properly before it has answered. When the connection breaks instead, the
# caller knows at once.
#
# One would expect the reverse, or no difference: after a closing handshake it is certain that no answer will come. The
# end of the connection reaches the requests that wait where it is an error, and only the subscriptions where it is
# not. Output seen with Python 3.11 and websockets 15.0.1, a request_timeout of 6 s, and a server that ends the
# connection half a second after the request:
#
#   aborted: ConnectionClosedError, before the timeout
#   closed with 1000: TimeExhausted, at the timeout
#
# A node that is stopped answers every open call before it closes its sockets with 1000; a request that crosses that close
# gets no answer, and its caller looks for no other node for half a minute. A short `request_timeout` is the way
# out. Fails when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check web3==7.16.0 websockets==15.0.1
cat >"$dir/try.py" <<'PY'
import asyncio
import json
import logging
import time

from web3 import AsyncWeb3, WebSocketProvider
from websockets.asyncio.server import serve

logging.disable(logging.CRITICAL)
TIMEOUT = 6.0


async def server(socket):
    async for text in socket:
        request = json.loads(text)
        if request["method"] != "eth_blockNumber":
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": "test"}))
            continue
        await asyncio.sleep(0.5)
        if socket.request.path == "/abort":
            socket.transport.abort()
        else:
            await socket.close(1000)
        return


async def ask(port, path):
    provider = WebSocketProvider(f"ws://127.0.0.1:{port}{path}", request_timeout=TIMEOUT)
    async with AsyncWeb3(provider) as w3:
        began = time.monotonic()
        try:
            await w3.eth.block_number
            told = "an answer"
        except Exception as e:
            told = type(e).__name__
        return told, TIMEOUT <= time.monotonic() - began


async def main():
    async with serve(server, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        aborted, closed = await ask(port, "/abort"), await ask(port, "/close")
    for how, (told, is_late) in [("aborted", aborted), ("closed with 1000", closed)]:
        print(f"{how}: {told}, {'at' if is_late else 'before'} the timeout")
    if aborted != ("ConnectionClosedError", False) or closed != ("TimeExhausted", True):
        raise SystemExit("finding no longer holds: a proper close is told at once, or a broken one is not")


asyncio.run(main())
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: web3.py 7.16.0 waits for an answer on a connection that was properly closed"
