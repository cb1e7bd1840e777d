"""pjrpc, on httpx."""

import pjrpc.client.backend.httpx
import wire


class Client(wire.Client):
    def __init__(self, url):
        super().__init__(url)
        self.rpc = pjrpc.client.backend.httpx.Client(url)

    @staticmethod
    def how(url):
        # how:
        rpc = pjrpc.client.backend.httpx.Client(url)
        leader = rpc.proxy.raft_leader(verify=True)
        return leader  # JsonRpcError has code, message and data
        # end

    def call(self, method, params):
        return self.rpc.call(method, **params) if isinstance(params, dict) else self.rpc.call(method, *(params or []))

    def batch(self, calls):
        with self.rpc.batch() as many:
            for method, params in calls:
                many.call(method, *(params or []))
        return list(many.get_results())


wire.main(Client)
