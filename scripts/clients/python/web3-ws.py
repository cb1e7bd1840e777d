"""web3.py over WebSocket, 7 and 8, with a module of one's own."""

import web3
import websockets
import wire
from web3.method import Method
from web3.module import Module


class Client(wire.Client):
    w3, n = None, 0

    @staticmethod
    async def how(url):
        # how:
        raft = type("Raft", (Module,), {"is_async": True, "leader": Method("raft_leader")})  # names of methods, as many as are wanted
        provider = web3.WebSocketProvider(url, websocket_kwargs={"max_size": None}, request_timeout=6)  # all of it passes where a node stops meanwhile
        async with web3.AsyncWeb3(provider, external_modules={"raft": raft}) as w3:
            return await w3.raft.leader(True)  # Web3RPCError has rpc_response["error"], with code, message and data
        # end

    async def connected(self):
        if self.w3 is None:
            # A failed connect is tried five times, for 20 s, without this.
            provider = web3.WebSocketProvider(self.url, websocket_kwargs={"max_size": None}, max_connection_retries=1)
            self.w3 = await web3.AsyncWeb3(provider)
        return self.w3

    async def call(self, method, params):
        w3 = await self.connected()
        if isinstance(params, dict):
            raise TypeError("its Method knows no names")
        self.n += 1
        w3.attach_modules({f"m{self.n}": type("M", (Module,), {"is_async": True, "call": Method(method)})})
        try:
            return await getattr(w3, f"m{self.n}").call(*(params or []))
        except websockets.ConnectionClosed:
            # It does not connect again by itself.
            self.w3 = None
            raise

    async def batch(self, calls):
        w3 = await self.connected()
        answers = await w3.provider.make_batch_request([(m, p or []) for m, p in calls])
        return [a["result"] for a in answers]

    @staticmethod
    def seen(error):
        error = (getattr(error, "rpc_response", None) or {}).get("error") or {}
        return {"code": error.get("code"), "data": error.get("data")}


wire.main(Client)
