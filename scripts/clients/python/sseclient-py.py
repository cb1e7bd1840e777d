"""sseclient-py on requests: comes back by a loop of the caller's."""

import requests
import sseclient
import wire


class Client(wire.Client):
    comes_back = False

    def events(self, last):
        url = self.url
        # how:
        answer = requests.get(url, headers={"Last-Event-ID": last}, stream=True, timeout=30)
        answer.raise_for_status()
        for event in sseclient.SSEClient(answer).events():  # in a loop of your own that keeps event.id as `last`
            yield event.event, event.id, event.data
        # end


wire.main(Client)
