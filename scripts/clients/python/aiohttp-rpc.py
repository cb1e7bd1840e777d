"""aiohttp-rpc, over HTTP and over WebSocket."""

import asyncio

import aiohttp_rpc
import wire


class Client(wire.Client):
    rpc = None

    @staticmethod
    async def how(url):
        if url.startswith("http"):
            # how:
            async with aiohttp_rpc.JSONRPCClient(url) as rpc:
                return await rpc.methods.raft_leader(verify=True)  # JSONRPCError has code, message and data
            # end
        # how-ws:
        async with aiohttp_rpc.WSJSONRPCClient(url, max_msg_size=64 << 20) as rpc:  # json_requests_handler=f for the items of subscriptions
            return await rpc.methods.raft_leader(verify=True)  # JSONRPCError has code, message and data
        # end

    async def connected(self):
        if self.rpc is None or getattr(self.rpc, "ws_connect", None) is not None and self.rpc.ws_connect.closed:
            self.rpc = aiohttp_rpc.JSONRPCClient(self.url) if self.url.startswith("http") else aiohttp_rpc.WSJSONRPCClient(self.url, max_msg_size=64 << 20)
            await self.rpc.connect()
        return self.rpc

    async def call(self, method, params):
        rpc = await self.connected()
        return await (rpc.call(method, **params) if isinstance(params, dict) else rpc.call(method, *(params or [])))

    async def batch(self, calls):
        rpc = await self.connected()
        return list(await rpc.batch(*(getattr(rpc.methods, m).request(*(p or [])) for m, p in calls)))

    async def feed(self, method, params):
        items = asyncio.Queue()

        async def take(ws_connect, ws_msg, json_requests):
            for request in json_requests:
                items.put_nowait(request["params"]["result"])

        async with aiohttp_rpc.WSJSONRPCClient(self.url, max_msg_size=64 << 20, json_requests_handler=take) as rpc:
            await rpc.call(method, *params)
            # It tells nobody that a connection is over; whoever wants to know looks.
            while not rpc.ws_connect.closed or not items.empty():
                try:
                    yield await asyncio.wait_for(items.get(), 0.2)
                except asyncio.TimeoutError:
                    pass


wire.main(Client)
