"""A server that is asked about many responses at a time: retried, bounded in time and in number, remembered."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from cachetools import LRUCache
from openai import AsyncOpenAI

from ring_ray.config import EndpointConfig, require
from ring_ray.rewards.base import failed, timed_out
from ring_ray.rewards.boxed import shorten
from ring_ray.types import Reward

Body: TypeAlias = dict[str, object]
Answer = TypeVar("Answer")


class UnreadableAnswerError(ValueError):
    """A server's answer is not what was asked for."""


class Endpoint:
    """What a server answers to JSON; for one thread, in which no event loop runs.

    The openai package's client tries again, with growing waits, after connection errors, 408, 409, 429 and 5xx. What
    was answered is remembered in this process, by a hash of all that was asked: that takes a few bytes an answer, and
    equal responses to a prompt mostly come in one group, or soon after each other.
    """

    def __init__(self, config: EndpointConfig, section: str) -> None:
        """``section`` is what the keys of ``config`` begin with. Raises `ConfigError` where they name no server."""
        require(config.url is not None, f"{section}.url", config.url, "must be the address of a server")
        self._config, self._section = config, section
        key = os.environ.get(config.api_key_variable, "").strip()  # of the newline that ends a secret's file
        self._client = AsyncOpenAI(
            base_url=config.url,
            api_key=key or "none",
            max_retries=config.tries - 1,
            timeout=config.request_seconds,
        )
        self._runner = asyncio.Runner()
        self._slots = asyncio.Semaphore(config.concurrency)
        self._remembered: LRUCache[bytes, Any] = LRUCache(config.cached)

    def ask_all(
        self, route: str, bodies: Sequence[Body], read: Callable[[object], Answer]
    ) -> Sequence[Answer | Reward]:
        """What ``read`` makes of the answer to each of the ``bodies``, or the reward that says why there is none.

        Args:
            route: below the server's address, such as "/classify".
            bodies: JSON objects.
            read: of the decoded JSON; raises `UnreadableAnswerError`.
        """

        async def gather() -> Sequence[Answer | Reward]:
            return await asyncio.gather(*(self._attempt(route, body, read) for body in bodies))

        return self._runner.run(gather())

    def close(self) -> None:
        """It can't be asked again."""
        self._runner.run(self._client.close())
        self._runner.close()

    async def _attempt(self, route: str, body: Body, read: Callable[[object], Answer]) -> Answer | Reward:
        seconds = self._config.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(route, body, read)
        except TimeoutError:
            return timed_out(f"{self._config.url} took longer than {self._section}.timeout_seconds={seconds:g}")
        except Exception as error:  # noqa: BLE001 - what a server sends may break anything, but this answer alone
            return failed(f"{self._config.url}: {type(error).__name__}: {shorten(str(error), limit=300)}")

    async def _ask(self, route: str, body: Body, read: Callable[[object], Answer]) -> Answer:
        key = hashlib.sha256(json.dumps([route, body], sort_keys=True).encode()).digest()
        if key not in self._remembered:
            async with self._slots:
                answer = await self._client.post(route, body=body, cast_to=object)
            self._remembered[key] = read(answer)
        found: Answer = self._remembered[key]
        return found
