"""substrate-interface, over WebSocket."""

import queue
import threading

import substrateinterface
import wire


class Client(wire.Client):
    def __init__(self, url):
        super().__init__(url)
        self.substrate = substrateinterface.SubstrateInterface(url=url, auto_discover=False)

    @staticmethod
    def how(url):
        # how:
        substrate = substrateinterface.SubstrateInterface(url=url, auto_discover=False)
        substrate.rpc_request("raft_subscribeLeadership", [], result_handler=lambda message, *_: message["params"]["result"])  # None: the next one
        return substrate.rpc_request("raft_leader", [True])["result"]  # SubstrateRequestException's args[0] has code, message and data
        # end

    def call(self, method, params):
        return self.substrate.rpc_request(method, [] if params is None else params)["result"]

    def feed(self, method, params):
        items = queue.Queue()

        def read():
            try:
                self.substrate.rpc_request(method, params, result_handler=lambda message, *_: items.put(message["params"]["result"]))
            except Exception as e:
                items.put(e)

        # The call returns when the handler says so; here it never does.
        threading.Thread(target=read, daemon=True).start()
        while True:
            item = items.get()
            if isinstance(item, Exception):
                raise item
            yield item

    @staticmethod
    def seen(error):
        error = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        return {"code": error.get("code"), "data": error.get("data")}


wire.main(Client)
