"""async-substrate-interface, over WebSocket, without the chain's set-up that `async with` begins with."""

import asyncio
import logging

import async_substrate_interface
import wire

# It writes every refusal to the log as well.
logging.disable(logging.CRITICAL)


class Client(wire.Client):
    def __init__(self, url):
        super().__init__(url)
        self.substrate = async_substrate_interface.AsyncSubstrateInterface(url, ws_shutdown_timer=None)

    @staticmethod
    async def how(url):
        # how:
        substrate = async_substrate_interface.AsyncSubstrateInterface(url, ws_shutdown_timer=None)  # no `async with`: it asks for a chain
        answer = await substrate.rpc_request("raft_leader", [True])  # sent again after a broken connection: what acts wants an operationId
        return answer["result"]  # result_handler=f, async, f(message, id) -> (message, False), for a subscription
        # end

    async def call(self, method, params):
        return (await self.substrate.rpc_request(method, params))["result"]

    async def feed(self, method, params):
        items = asyncio.Queue()

        async def take(message, _):
            # The answer of the call that subscribes comes here too.
            if "params" in message:
                items.put_nowait(message["params"]["result"])
            return message, False

        reading = asyncio.create_task(self.substrate.rpc_request(method, params, result_handler=take))
        while True:
            getting = asyncio.create_task(items.get())
            await asyncio.wait({reading, getting}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                await self.substrate.close()
                reading.result()
                return
            yield getting.result()


wire.main(Client)
