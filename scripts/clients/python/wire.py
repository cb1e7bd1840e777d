"""How a client program talks with `make clients`: commands come in and answers go out, a line of JSON each.

    PROGRAM URL                      commands: how, call, batch, big (see `Client`)
    PROGRAM URL feed METHOD PARAMS   the items of a subscription, one a line; comes back by itself from the last one
    PROGRAM URL events               the same of a reader of server-sent events

A program shows the library as its users call it; what the library hides stays hidden. Standard library only: it runs in
the environment of each client.
"""

import asyncio
import inspect
import json
import sys


class Refusal(Exception):
    """A JSON-RPC error that the library hands over as a value."""

    def __init__(self, error):
        super().__init__(json.dumps(error))
        self.code, self.data = error.get("code"), error.get("data")


class Client:
    """One a library. Every method may be a coroutine."""

    def __init__(self, url):
        self.url = url

    @staticmethod
    def how(url):
        """The lines of the table; the answer of raft_leader."""
        raise NotImplementedError

    def call(self, method, params):
        """`params`: None, a list or a dict."""
        raise NotImplementedError

    # def batch(self, calls): for libraries that have one; the results in order.

    # def feed(self, method, params): a generator, async or not, of items, for those that have subscriptions.

    @staticmethod
    def seen(error):
        """What a caller can read of an error: code, data."""
        return {"code": getattr(error, "code", None), "data": getattr(error, "data", None)}


def out(**what):
    print(json.dumps(what, default=plain), flush=True)


def plain(value):
    """Web3's dictionaries are read-only ones."""
    return dict(value) if hasattr(value, "items") else repr(value)


async def settle(value):
    return await value if inspect.isawaitable(value) else value


def said(client, error):
    """The error as the caller has it, and the body of an HTTP status where the library keeps it."""
    seen = client.seen(error)
    answer = next((e.response for e in (error, error.__cause__) if getattr(e, "response", None) is not None), None)
    if seen.get("code") is None and answer is not None:
        try:
            body = answer.json() if hasattr(answer, "json") else json.loads(answer.body)
            seen["inBody"] = body["error"]["code"]
        except (AttributeError, ValueError, KeyError, TypeError):
            pass
    more = [a for a in (*error.args[1:], error.__cause__) if isinstance(a, BaseException)]
    text = [f"{type(e).__name__}: {e}" for e in more] or [str(error)]
    return {**seen, "text": " ".join([f"{type(error).__name__}:", *text])[:400]}


async def big(client, height, leader):
    """A large block: read, and proposed again as it is to the leader."""
    got = await settle(client.call("block_get", [height]))
    block = {k: got["block"][k] for k in ("height", "hash", "timestamp", "header", "data")}
    answer = await settle(leader.call("block_propose", [block]))
    data = got["block"]["data"][2:]
    return {"bytes": len(data) // 2, "first": data[:16], "last": data[-16:], "duplicate": answer["duplicate"]}


async def command(kind, client, given):
    what = given["do"]
    if what == "how":
        return await settle(kind.how(client.url))
    if what == "batch":
        return await settle(client.batch(given["calls"]))
    if what == "big":
        return await big(client, given["height"], kind(given["leader"]))
    if given.get("url"):
        client = kind(given["url"])
    return await settle(client.call(given["method"], given.get("params")))


async def commands(kind, url):
    client = kind(url)
    out(ready=True)
    # Beside the loop, so that a library's own tasks go on meanwhile.
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            out(result=await asyncio.wait_for(command(kind, client, json.loads(line)), 30))
        except (Exception, asyncio.CancelledError) as e:
            out(error=said(client, e))


async def each(items):
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def onward(params, last):
    """The parameters with which a reader comes back behind `last`."""
    if isinstance(params, list) and params[0] in ("applied", "leadership"):
        return [params[0], {"fromIndex": last + 1} if params[0] == "applied" else {"fromId": last + 1}]
    return [None, last + 1] if len(params) == 2 else [last + 1]


async def follow(kind, url, method, params):
    last = None
    while True:
        try:
            async for item in each(kind(url).feed(method, params if last is None else onward(params, last))):
                out(item=item)
                place = item.get("index", item.get("id", (item.get("caughtUp") or {}).get("index")))
                last = last if place is None else place
                if "end" in item:
                    break
            out(ended="as an end of the feed")
        except Exception as e:
            out(ended=f"{type(e).__name__}: {e}"[:200])
        await asyncio.sleep(0.3)


async def events(kind, url):
    """A library that does not come back by itself is brought back here, with the id of its last event."""
    last = ""
    while True:
        try:
            async for name, ident, data in each(kind(url).events(last)):
                out(event=name, id=ident, data=data)
                last = ident or last
            out(ended="as an end of the feed")
        except Exception as e:
            out(ended=f"{type(e).__name__}: {e}"[:200])
        if kind.comes_back:
            return
        await asyncio.sleep(0.5)


def main(kind):
    url, rest = sys.argv[1], sys.argv[2:]
    if not rest:
        asyncio.run(commands(kind, url))
    elif rest[0] == "feed":
        asyncio.run(follow(kind, url, rest[1], json.loads(rest[2])))
    else:
        asyncio.run(events(kind, url))
