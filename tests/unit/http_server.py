"""A small HTTP server on loopback that answers as a test tells it to, to see how its client bears that."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Body = dict[str, Any]
Answer = Callable[[Body, int], Awaitable[web.StreamResponse]]
"""Of a request's body, and of how many requests with that body came before."""

AT_ONCE = {"retry-after-ms": "1"}  # the client would otherwise wait as long as it finds right


@dataclass
class Seen:
    url: str = ""
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_a_time: int = 0


@contextmanager
def http_server(answer: Answer) -> Iterator[Seen]:
    """POST requests of any path go to ``answer``, in a thread of their own."""
    seen, started = Seen(), threading.Event()
    under_way = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal under_way
        body = await request.json()
        before = seen.bodies.count(body)
        seen.bodies.append(body)
        seen.headers.append(dict(request.headers))
        under_way += 1
        seen.most_at_a_time = max(seen.most_at_a_time, under_way)
        try:
            return await answer(body, before)
        finally:
            under_way -= 1

    async def serve(stop: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        seen.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await stop.wait()
        await runner.cleanup()

    with asyncio.Runner() as runner:
        loop, stop = runner.get_loop(), asyncio.Event()
        thread = threading.Thread(target=lambda: runner.run(serve(stop)))
        thread.start()
        try:
            assert started.wait(30)
            yield seen
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
