"""Shared by all tests."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import settings

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]

settings.register_profile("no_deadline", deadline=None)  # a loaded machine is slow, not wrong
settings.load_profile("no_deadline")


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine in the one event loop that the engine of a module lives in."""
    with asyncio.Runner() as runner:
        yield runner.run
