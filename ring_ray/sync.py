"""Moving the rollout engines to new weights, and proving that they arrived."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ring_ray.roles import PolicyRole, RolloutRole

T = TypeVar("T")


class WeightSyncError(RuntimeError):
    """An engine holds other weights than the policy sent."""


class WeightSync:
    """From the policy to every rollout engine, bucket by bucket.

    Where the roles take turns on a device, the engines give their memory back in `rest` and take that of the weights
    again when these arrive, then that of their cache, which is when the policy has given back its own.
    """

    def __init__(self, policy: PolicyRole, rollout: RolloutRole, *, verify: bool, take_turns: bool) -> None:
        """``verify``: compare a checksum of every tensor on both sides after each transfer."""
        self._policy, self._rollout = policy, rollout
        self._verify, self._take_turns = verify, take_turns
        self._version: int | None = None  # without one the engines have the weights that they were started with

    async def rest(self) -> None:
        """Interrupt the engines: it is someone else's turn."""
        await self._rollout.interrupt(sleep=self._take_turns)

    async def transfer(self, version: int) -> None:
        """Load the policy's weights into the engines and have them sample again, as policy version ``version``.

        Raises:
            WeightSyncError: names the tensors that differ; the engines stay interrupted.
        """
        self._version = version
        await self._update(newcomers=False)

    async def alongside(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns. Meanwhile engines that were started anew are given the weights of the others.

        The policy must have nothing else to do, and its weights be those of the last `transfer`.
        """
        task = asyncio.create_task(work)
        returned = asyncio.create_task(self._rollout.returned())
        try:
            while not task.done():
                await asyncio.wait({task, returned}, return_when=asyncio.FIRST_COMPLETED)
                if returned.done():
                    returned.result()  # raises what keeps an engine from coming back
                    await self._update(newcomers=True)
                    returned = asyncio.create_task(self._rollout.returned())
            return task.result()
        finally:
            task.cancel()
            returned.cancel()

    async def _update(self, *, newcomers: bool) -> None:
        receivers = self._rollout.begin_update(newcomers=newcomers)
        if self._version is not None:
            while not await self._send(receivers):
                receivers = self._rollout.begin_update(newcomers=newcomers)
            if self._take_turns:
                await self._policy.offload()
        await self._rollout.resume(self._version)

    async def _send(self, receivers: tuple[str, ...]) -> bool:
        """False where one of the engines was lost."""
        if not receivers:
            return True
        async for parcel in self._policy.parcels(receivers):
            if not await self._rollout.receive(parcel):
                return False
        if self._verify:
            sent, of_engines = await self._policy.checksums(), await self._rollout.checksums()
            if len(of_engines) < len(receivers):
                return False
            for engine, held in zip(receivers, of_engines, strict=True):
                compare(sent, held, f"{engine} at policy version {self._version}")
        return True


def compare(sent: dict[str, str], held: dict[str, str], holder: str) -> None:
    """Raise `WeightSyncError` unless the checksums are the same."""
    wrong = sorted(name for name in sent.keys() | held.keys() if sent.get(name) != held.get(name))
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise WeightSyncError(f"{holder}: {len(wrong)} of {len(sent)} tensors differ from the policy's: {shown}")
