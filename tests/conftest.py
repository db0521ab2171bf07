"""Shared by all tests."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeAlias

import pytest
from hypothesis import settings

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]

# No deadline: a loaded machine is slow, not wrong. The same examples each time, so that a change is judged by itself;
# `pytest --hypothesis-profile=explore` looks for others.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a coroutine in the one event loop that the engine of a module lives in."""
    with asyncio.Runner() as runner:
        yield runner.run
