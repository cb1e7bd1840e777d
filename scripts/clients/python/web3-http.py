"""web3.py over HTTP, 7 and 8."""

import web3
import wire


class Client(wire.Client):
    def __init__(self, url):
        super().__init__(url)
        self.provider = web3.HTTPProvider(url, request_kwargs={"timeout": 20})

    @staticmethod
    def how(url):
        # how:
        w3 = web3.Web3(web3.HTTPProvider(url))
        answer = w3.provider.make_request("raft_leader", [True])
        return answer["result"]  # or answer["error"], with code, message and data
        # end

    def call(self, method, params):
        return self.value(self.provider.make_request(method, [] if params is None else params))

    def batch(self, calls):
        return [self.value(a) for a in self.provider.make_batch_request([(m, p or []) for m, p in calls])]

    @staticmethod
    def value(answer):
        if "error" in answer:
            raise wire.Refusal(answer["error"])
        return answer["result"]


wire.main(Client)
