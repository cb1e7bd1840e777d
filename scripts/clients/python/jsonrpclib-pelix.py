"""jsonrpclib-pelix, over HTTP; sends application/json-rpc."""

import jsonrpclib
import wire
from jsonrpclib.jsonrpc import ProtocolError, TransportError


class Client(wire.Client):
    def __init__(self, url):
        super().__init__(url)
        self.server = jsonrpclib.ServerProxy(url)

    @staticmethod
    def how(url):
        # how:
        server = jsonrpclib.ServerProxy(url)
        leader = server.raft_leader(verify=True)
        return leader  # ProtocolError's args[0] is (code, message)
        # end

    def call(self, method, params):
        call = getattr(self.server, method)
        return call(**params) if isinstance(params, dict) else call(*(params or []))

    def batch(self, calls):
        many = jsonrpclib.MultiCall(self.server)
        for method, params in calls:
            getattr(many, method)(*(params or []))
        return list(many())

    @staticmethod
    def seen(error):
        of = error.args[0] if error.args else None
        if isinstance(error, ProtocolError) and not isinstance(error, TransportError) and isinstance(of, tuple):
            return {"code": of[0], "data": of[2] if len(of) > 2 else None}
        return {}


wire.main(Client)
