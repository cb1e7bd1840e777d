"""requests-sse: comes back by itself."""

import requests_sse
import wire


class Client(wire.Client):
    comes_back = True

    def events(self, last):
        url = self.url
        # how:
        with requests_sse.EventSource(url, timeout=30, max_connect_retry=20) as source:
            for event in source:
                yield event.type, event.last_event_id, event.data
        # end


wire.main(Client)
