"""jsonrpc-websocket, on aiohttp."""

import asyncio

import jsonrpc_websocket
import wire

LARGEST = 64 << 20


class Client(wire.Client):
    server = None

    @staticmethod
    async def how(url):
        # how:
        server = jsonrpc_websocket.Server(url, max_msg_size=64 << 20)  # 4 MiB else
        await server.ws_connect()
        server.raft_leadership = lambda subscription, result: print(result)  # items of raft_subscribeLeadership()
        return await server.raft_leader(True)  # ProtocolError's args: code, message, the whole answer with its data
        # end

    async def connected(self):
        if self.server is None:
            self.server = jsonrpc_websocket.Server(self.url, max_msg_size=LARGEST)
        if not self.server.connected:
            await self.server.ws_connect()
        return self.server

    async def call(self, method, params):
        server = await self.connected()
        if isinstance(params, dict):
            return await getattr(server, method)(**params)
        return await getattr(server, method)(*(params or []))

    async def feed(self, method, params):
        items = asyncio.Queue()
        server = jsonrpc_websocket.Server(self.url, max_msg_size=LARGEST)
        for name in ("raft_leadership", "block_applied", "raft_subscription"):
            setattr(server, name, lambda subscription, result: items.put_nowait(result))
        # Its loop is over when the connection is.
        loop = await server.ws_connect()
        await getattr(server, method)(*params)
        while True:
            getting = asyncio.create_task(items.get())
            await asyncio.wait({loop, getting}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                return
            yield getting.result()

    @staticmethod
    def seen(error):
        if len(error.args) == 3 and isinstance(error.args[2], dict):
            return {"code": error.args[0], "data": error.args[2]["error"].get("data")}
        return {}


wire.main(Client)
