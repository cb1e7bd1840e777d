#!/usr/bin/env bash
# aiohttp-sse-client2 0.3.0: `max_connect_retry` holds for the first connection alone. When a stream has ended, it tries to
# connect once, and a server that is not back by then ends the reading with an error.
#
# One would expect the same patience both times: reconnecting is what server-sent events are for (WHATWG HTML, 9.2.3). Here the server is away for half a second, once before the reader's first
# connect and once after the proper end of its first answer. Output seen with Python 3.11 and aiohttp 3.13.2, the option
# at 20:
#
#   away before the first connect: read event 1
#   away after the end of an answer: ClientConnectorError after 1 attempt
#
# A node that is restarted is away for about that long, so a reader of its feed wants a loop of its own around this client
# that comes back with the last id. Fails when the package no longer does this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check aiohttp-sse-client2==0.3.0 aiohttp==3.13.2
cat >"$dir/try.py" <<'PY'
import asyncio
import datetime
import logging

import aiohttp
from aiohttp import web
from aiohttp_sse_client2 import client

AWAY = 0.5
RETRIES = 20
n_answers = 0


async def feed(request):
    global n_answers
    n_answers += 1
    return web.Response(text=f"id: {n_answers}\ndata: {n_answers}\n\n", content_type="text/event-stream")


async def serve(port):
    app = web.Application()
    app.router.add_get("/", feed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner, runner.addresses[0][1]


async def read(source, n):
    """The events, or what ended the reading; and how often it tried to connect."""
    events = []
    try:
        async with source:
            async for event in source:
                events.append(event.data)
                if len(events) == n:
                    return f"read event {event.data}"
    except aiohttp.ClientError as e:
        return type(e).__name__


def reader(port):
    n_attempts = 0
    trace = aiohttp.TraceConfig()

    async def attempt(*_):
        nonlocal n_attempts
        n_attempts += 1

    trace.on_connection_create_start.append(attempt)
    session = aiohttp.ClientSession(trace_configs=[trace])
    patience = datetime.timedelta(milliseconds=50)
    source = client.EventSource(f"http://127.0.0.1:{port}/", session=session, reconnection_time=patience, max_connect_retry=RETRIES)
    return session, source, lambda: n_attempts


async def main():
    runner, port = await serve(0)
    await runner.cleanup()
    session, source, _ = reader(port)
    reading = asyncio.create_task(read(source, 1))
    await asyncio.sleep(AWAY)
    runner, _ = await serve(port)
    first = await reading
    await session.close()
    print(f"away before the first connect: {first}")

    session, source, n_attempts = reader(port)
    reading = asyncio.create_task(read(source, 2))
    while n_answers < 2:
        await asyncio.sleep(0.001)
    before = n_attempts()
    await runner.cleanup()
    await asyncio.sleep(AWAY)
    runner, _ = await serve(port)
    second = await asyncio.wait_for(reading, 20)
    n = n_attempts() - before
    await session.close()
    await runner.cleanup()
    print(f"away after the end of an answer: {second} after {n} attempt{'s' * (n != 1)}")
    if first != "read event 1" or second != "ClientConnectorError" or n != 1:
        raise SystemExit("finding no longer holds: it is as patient when it reconnects")


logging.disable(logging.CRITICAL)
asyncio.run(main())
PY
"$dir/venv/bin/python" "$dir/try.py"
echo "finding holds: aiohttp-sse-client2 0.3.0 tries once to reconnect"
