"""Remote calls: what Ray's types do not say of them, and what their errors mean."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

First = TypeVar("First")
Second = TypeVar("Second")


def two_refs(call: ObjectRef[tuple[First, Second]]) -> tuple[ObjectRef[First], ObjectRef[Second]]:
    """The refs that a call of a method with ``num_returns=2`` really returns: the first can travel on unopened."""
    return cast("tuple[ObjectRef[First], ObjectRef[Second]]", call)


def end_actor(actor: object) -> None:
    """Kill an actor, if it lives."""
    ray.kill(cast("ActorHandle[Any]", actor))


class WorkerLostError(RuntimeError):
    """A worker will not answer; the message says who, what it was asked for, and whether it died or is silent."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


@asynccontextmanager
async def expecting(who: str, doing: str, seconds: float | None = None) -> AsyncIterator[None]:
    """Around a call: raises `WorkerLostError` where the worker ``who`` dies, or is silent for ``seconds``.

    One that raised an error in its constructor is not lost: another would raise it again.
    """
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except RayActorError as error:
        # The latter is what was asked for that failed, as where its argument died with another worker.
        if error.actor_init_failed or isinstance(error, RayTaskError):
            raise
        raise WorkerLostError(f"{who} died, asked to {doing}", silent=False) from error
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise WorkerLostError(f"{who} has not answered for {seconds:g} s, asked to {doing}", silent=True) from error
