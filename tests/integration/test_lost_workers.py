"""Workers that die or fall silent, by role."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from ring_ray.actors.buffer import BufferHandle, BufferWorker
from ring_ray.actors.cluster import ray_session
from ring_ray.actors.fleet import Fleet, Recovery
from ring_ray.actors.policy import PolicyGang, PolicyWorker
from ring_ray.actors.reward import Reservoir, RewardPool, RewardWorker
from ring_ray.actors.rollout import RolloutPool, RolloutWorker
from ring_ray.config import AlgoConfig, ClusterConfig, RecoveryConfig, RoleResources, RolloutConfig, RunConfig
from ring_ray.roles import RollBackError, RolloutRef
from ring_ray.sync import WeightSync
from ring_ray.types import Prompt, Reward, Rollout, RolloutStatus, Sequence, Verdict
from tests.conftest import Run
from tests.integration.commands import command_line
from tests.integration.fleets import Faults, make_fleet
from tests.unit.rollouts import rollout_of

SHORT = RecoveryConfig(answer_seconds=5)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_session(ClusterConfig()):
        yield


def started() -> RolloutRef:
    """Four responses without a token."""
    ids = np.array([3, 4, 5], np.int32)
    prompt = Prompt(index=0, id="p", domain="d", text="?", token_ids=ids, verifier="integer", answer="4")
    return RolloutRef(Rollout(prompt=prompt, sequences=(Sequence.start(ids),) * 4))


class MortalReward(RewardWorker):
    """Dies of the rollout of prompt 1, always; of that of prompt 2 as long as ``path`` is not there; hangs on 3."""

    def __init__(self, model_path: str, config: RunConfig, path: Path) -> None:
        super().__init__(model_path, config)
        self._path = path

    @ray.method(num_returns=2)
    def score(self, rollout: Rollout):  # type: ignore[no-untyped-def,override]
        index = rollout.prompt.index
        if index == 2 and not self._path.exists():
            self._path.touch()
            index = 1
        if index == 1:
            os._exit(1)
        if index == 3:
            while True:
                time.sleep(1)
        return None, (Reward(score=1.0, verdict=Verdict.CORRECT, reason=str(index)),) * 4


def test_a_rollout_that_kills_verifiers_is_failed_and_others_are_scored(tiny: str, run: Run, tmp_path: Path) -> None:
    faults = Faults()
    fleet = make_fleet(MortalReward, "reward worker", tiny, RunConfig(), tmp_path / "died", size=2, log=faults)

    async def go() -> list[tuple[Reward, ...]]:
        pool = RewardPool(fleet, call_seconds=10, kept=Reservoir(0, seed=0))
        rollouts = [RolloutRef(ray.put(rollout_of(index, 1, 1))) for index in range(6)]
        return await asyncio.gather(*map(pool.score, rollouts))

    scored = run(go())
    fleet.end()
    verdicts = [{reward.verdict for reward in rewards} for rewards in scored]
    assert verdicts == [{Verdict.FAILED if index in (1, 3) else Verdict.CORRECT} for index in range(6)]
    assert "died, asked to score a rollout" in scored[1][0].reason
    assert "has not answered for 10 s, asked to score a rollout" in scored[3][0].reason
    assert "is in score (test_lost_workers.py:" in scored[3][0].reason
    assert [fault.kind for fault in faults.faults] == ["reward"] * 5


async def stop(worker: object) -> None:
    """As if it hung: the process stays, and does nothing."""
    place = await worker.whereabouts.remote()  # type: ignore[attr-defined]
    os.kill(place.pid, signal.SIGSTOP)


def test_a_silent_rank_is_named_with_what_the_others_wait_in(tiny: str, run: Run, tmp_path: Path) -> None:
    """Rank 1 is stopped: rank 0 waits for it in a collective, for ever if nobody looks."""
    config = RunConfig(cluster=ClusterConfig(policy=RoleResources(workers=2)))
    fleet = Fleet(
        ["policy rank 0", "policy rank 1"],
        lambda rank, name: ray.remote(PolicyWorker).options(num_cpus=0, name=name).remote(config, "cpu", rank),
        Recovery(RecoveryConfig(), Faults(), tmp_path / "run"),
    )

    async def go() -> str:
        gang = PolicyGang(fleet)
        await gang.start(tiny, config.train, config.algo)
        await stop(fleet[1])
        fleet.recovery.config.work_seconds = 5
        with pytest.raises(RollBackError) as error:
            await gang.save(str(tmp_path / "model"))  # ends with a barrier
        fleet.recovery.config.work_seconds = 120
        await gang.start(tiny, config.train, config.algo)  # with new ranks
        await gang.save(str(tmp_path / "model"))
        return str(error.value)

    told = run(go())
    fleet.end()
    assert re.match(r"policy rank [01] has not answered for 5 s, asked to save the model: ", told)
    assert "policy rank 1 is stopped" in told
    assert re.search(r"policy rank 0 is in (barrier|wait|_?\w+) \(distributed_c10d.py:\d+\)", told), told
    (stacks,) = (tmp_path / "run").glob("stacks-*.txt")
    assert str(stacks) in told
    assert "in save" in stacks.read_text()


def test_a_dead_rank_takes_the_gang_with_it(tiny: str, run: Run) -> None:
    fleet = make_fleet(PolicyWorker, "policy rank", RunConfig(), "cpu", 0)

    async def go() -> None:
        gang = PolicyGang(fleet)
        await gang.start(tiny, RunConfig().train, RunConfig().algo)
        await gang.check()
        place = await fleet[0].whereabouts.remote()
        os.kill(place.pid, signal.SIGKILL)
        with pytest.raises(RollBackError, match="policy rank 0 died"):
            await gang.memory()
        await gang.start(tiny, RunConfig().train, RunConfig().algo)
        await gang.check()
        assert (await fleet[0].whereabouts.remote()).pid != place.pid

    run(go())
    fleet.end()


def test_a_silent_buffer_is_replaced_by_an_empty_one(run: Run) -> None:
    fleet = make_fleet(BufferWorker, "buffer", AlgoConfig(token_budget=4, group_size=2), 0, recovery=SHORT)

    async def go() -> None:
        buffer = BufferHandle(fleet)
        await buffer.add(RolloutRef(ray.put(rollout_of(0, 2, 2))))
        state = await buffer.snapshot()
        await stop(fleet[0])
        adds = [buffer.add(RolloutRef(ray.put(rollout_of(index, 2, 2)))) for index in (1, 2)]
        errors = await asyncio.gather(*adds, return_exceptions=True)
        assert [type(error) for error in errors] == [RollBackError] * 2
        assert "buffer 0 is stopped" in "".join(map(str, errors))
        _, waiting = await buffer.restore(state)
        assert list(waiting) == [0]

    run(go())
    fleet.end()


def test_a_silent_engine_is_replaced_and_its_rollout_goes_on(tiny: str, run: Run) -> None:
    faults = Faults()
    config = RunConfig(rollout=RolloutConfig(max_response_tokens=256, max_sequences=4, max_batched_tokens=64))
    fleet = make_fleet(
        RolloutWorker, "rollout engine", tiny, config, "cpu", 0, log=faults, recovery=SHORT, max_concurrency=1000
    )

    async def generated(pool: RolloutPool) -> RolloutStatus:
        while True:
            if grown := await pool.generate(started()):
                return grown[1]

    async def go() -> RolloutStatus:
        pool = RolloutPool(fleet, "object_store")
        sync = WeightSync(PolicyGang(fleet), pool, verify=False, take_turns=False)  # which has nothing to send
        await pool.resume()
        work = asyncio.create_task(sync.alongside(generated(pool)))
        place = await fleet[0].whereabouts.remote()
        children = psutil.Process(place.pid).children()
        (engine,) = [child for child in children if command_line(child).startswith("VLLM::EngineCore")]
        engine.suspend()
        status = await work
        await pool.close()
        assert not psutil.pid_exists(engine.pid)
        return status

    assert run(go()).finished
    fleet.end()
    (fault,) = faults.faults
    assert "rollout engine 0 has not answered for 5 s, asked to answer a ping" in fault.what
    assert fault.seconds > 0


def test_a_constructor_that_fails_is_no_fault_to_recover_from(tiny: str, run: Run) -> None:
    faults = Faults()
    fleet = make_fleet(RolloutWorker, "rollout engine", f"{tiny}/none", RunConfig(), "cpu", 0, log=faults)
    with pytest.raises(ray.exceptions.RayActorError, match=r"/none is no Hugging Face model directory"):
        run(RolloutPool(fleet, "object_store").resume())
    fleet.end()
    assert faults.stages == faults.faults == []
