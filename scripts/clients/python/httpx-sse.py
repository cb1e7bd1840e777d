"""httpx-sse: comes back by a loop of the caller's."""

import httpx
import httpx_sse
import wire


class Client(wire.Client):
    comes_back = False

    def events(self, last):
        url = self.url
        # how:
        with httpx.Client(timeout=30) as http, httpx_sse.connect_sse(http, "GET", url, headers={"Last-Event-ID": last}) as source:
            for event in source.iter_sse():  # in a loop of your own that keeps event.id as `last`
                yield event.event, event.id, event.data
        # end


wire.main(Client)
