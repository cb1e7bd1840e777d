#!/usr/bin/env bash
# async-substrate-interface 2.2.1 fails every request in flight with RecursionError once about a thousand have been sent
# with no answer between them.
#
# One would expect pipelined requests to cost memory, or to wait. But the coroutine that waits for an answer calls itself
# each time something is sent meanwhile, so that Python's limit of 1 000 nested calls is the limit of what may be
# in flight; then the receiving task ends, and all that waits with it. Output seen with Python 3.11 and websockets 17.4,
# against a server that answers all when it has read the last:
#
#   900 in flight: 900 answers
#   1020 in flight: 1020 RecursionError
#
# A producer that proposes its blocks without waiting, through it, is told of no block whether it was accepted. What was
# sent has arrived: it is to be proposed again, which answers `duplicate`. Fails when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check async-substrate-interface==2.2.1 websockets==17.4
cat >"$dir/try.py" <<'PY'
import asyncio
import collections
import json
import logging

import async_substrate_interface
from websockets.asyncio.server import serve

logging.disable(logging.CRITICAL)


async def outcomes(n):
    async def server(socket):
        ids = []
        async for text in socket:
            ids.append(json.loads(text)["id"])
            if len(ids) == n:
                for i in ids:
                    await socket.send(json.dumps({"jsonrpc": "2.0", "id": i, "result": True}))

    async with serve(server, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = async_substrate_interface.AsyncSubstrateInterface(f"ws://127.0.0.1:{port}", ws_shutdown_timer=None)
        # A name of its own for each: its ids are the method's name and one of 7 001 numbers.
        calls = [client.rpc_request(f"propose{i}", []) for i in range(n)]
        try:
            answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
        except TimeoutError as e:
            answers = [e]
    return collections.Counter(type(a).__name__ if isinstance(a, Exception) else "answers" for a in answers)


# Below 1 024, which is what it lets be in flight.
few, many = asyncio.run(outcomes(900)), asyncio.run(outcomes(1020))
for n, seen in ((900, few), (1020, many)):
    print(f"{n} in flight: " + ", ".join(f"{count} {what}" for what, count in seen.items()))
if few != {"answers": 900} or many != {"RecursionError": 1020}:
    raise SystemExit("finding no longer holds: a thousand in flight are no limit")
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: async-substrate-interface 2.2.1 has no more than some thousand requests in flight"
