"""Moving the rollout engines to new weights, and proving that they arrived."""

from ring_ray.roles import PolicyRole, RolloutRole


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

    async def rest(self) -> None:
        """Interrupt the engines: it is someone else's turn."""
        await self._rollout.interrupt(sleep=self._take_turns)

    async def transfer(self, version: int) -> None:
        """Load the policy's weights into the engines and have them sample again, as policy version ``version``.

        Raises:
            WeightSyncError: names the tensors that differ; the engines stay interrupted.
        """
        async for parcel in self._policy.parcels():
            await self._rollout.receive(parcel)
        if self._verify:
            sent = await self._policy.checksums()
            for engine, held in enumerate(await self._rollout.checksums()):
                compare(sent, held, f"rollout engine {engine} at policy version {version}")
        if self._take_turns:
            await self._policy.offload()
        await self._rollout.resume(version)


def compare(sent: dict[str, str], held: dict[str, str], holder: str) -> None:
    """Raise `WeightSyncError` unless the checksums are the same."""
    wrong = sorted(name for name in sent.keys() | held.keys() if sent.get(name) != held.get(name))
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise WeightSyncError(f"{holder}: {len(wrong)} of {len(sent)} tensors differ from the policy's: {shown}")
