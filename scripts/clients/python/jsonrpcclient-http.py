"""jsonrpcclient, which makes requests and reads answers; httpx carries them."""

import httpx
import jsonrpcclient
import wire


class Client(wire.Client):
    def __init__(self, url):
        super().__init__(url)
        self.http = httpx.Client(trust_env=False, timeout=20)

    @staticmethod
    def how(url):
        # how:
        answer = httpx.post(url, json=jsonrpcclient.request("raft_leader", params={"verify": True}))
        leader = jsonrpcclient.parse(answer.json())
        return leader.result  # of jsonrpcclient.Ok; an Error has code, message and data
        # end

    def call(self, method, params):
        answer = self.http.post(self.url, json=jsonrpcclient.request(method, params=params))
        return self.value(jsonrpcclient.parse(answer.json()))

    def batch(self, calls):
        answer = self.http.post(self.url, json=[jsonrpcclient.request(m, params=p) for m, p in calls])
        return [self.value(a) for a in jsonrpcclient.parse(answer.json())]

    @staticmethod
    def value(answer):
        if isinstance(answer, jsonrpcclient.Error):
            raise wire.Refusal({"code": answer.code, "message": answer.message, "data": answer.data})
        return answer.result


wire.main(Client)
