"""aiohttp-sse-client2: comes back by itself."""

import aiohttp
import aiohttp_sse_client2.client
import wire


class Client(wire.Client):
    comes_back = True

    async def events(self, last):
        url = self.url
        # how:
        patience = aiohttp.ClientTimeout(total=None, sock_read=30)  # five minutes in all else
        async with aiohttp_sse_client2.client.EventSource(url, timeout=patience, max_connect_retry=20) as source:
            async for event in source:
                yield event.type, event.last_event_id, event.data
        # end


wire.main(Client)
