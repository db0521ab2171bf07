"""Steps that are skipped, and a policy that collapses: when a run stops, what it says, and what the ledger has."""

import asyncio
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ring_ray.checkpoint.batch import SavedBatch, read_batch, write_batch
from ring_ray.checkpoint.codec import encode
from ring_ray.checkpoint.store import CheckpointError
from ring_ray.config import AlgoConfig, GuardConfig, RunConfig, TrainConfig
from ring_ray.health import CollapseError, NonFiniteError, SkippedSteps
from ring_ray.roles import BatchRef, LogprobsRef, RollBackError
from ring_ray.types import TokenBatch, UpdateMetrics
from tests.unit.fakes import FakePolicy, FakeReference, StepList, make_update
from tests.unit.loop import run, trained_tokens
from tests.unit.test_packing import make_batch, make_segment, make_sequence


def batch_of(*lengths: int) -> TokenBatch:
    rng = np.random.default_rng(0)
    return make_batch([make_segment(make_sequence(rng, 3, length, 99), 0, length) for length in lengths])


def test_tokens_of_a_skipped_step_are_dropped_and_the_run_goes_on() -> None:
    steps, policy, buffer = run(AlgoConfig(token_budget=50, max_staleness=9), policy=FakePolicy(skips={2, 3}), steps=5)
    assert [step.update.skipped for step in steps] == [False, True, True, False, False]
    assert [step.ledger.trained for step in steps] == [50, 50, 50, 100, 150]
    assert [step.ledger.dropped for step in steps] == [0, 50, 100, 100, 100]
    assert all(step.ledger.balanced for step in steps)
    assert [batch.version for batch in policy.batches] == [0, 1, 2, 3, 4]
    assert max(trained_tokens(policy.batches).values()) == 1, "what was skipped does not come back"
    assert buffer.buffer.ledger().dropped == 100
    assert policy.kept == []


def test_the_run_stops_at_so_many_skipped_steps_in_a_row_with_all_of_them_reported() -> None:
    log, policy = StepList(), FakePolicy(skips={1, 2, 4, 5, 6, 7})
    algo = AlgoConfig(token_budget=50, max_staleness=9, kl_coefficient=0.1)
    path = Path(RunConfig().run_dir).absolute() / "skipped-step-00000006.msgpack"
    message = f"train.max_skipped_steps=3: .* the last step 6 with loss nan and gradient norm 0; {path} has its batch"
    with pytest.raises(NonFiniteError, match=message):
        run(algo, policy=policy, reference=FakeReference(), log=log, steps=9)
    assert [step.step for step in log.steps] == [1, 2, 3, 4, 5, 6]
    ((batch, reference, kept),) = policy.kept
    assert batch is policy.batches[-1]
    assert reference is policy.references[-1]
    assert kept == str(path)


def test_where_the_batch_can_not_be_kept_the_run_still_says_why_it_stops() -> None:
    class FullDisk(FakePolicy):
        async def keep(self, batch: BatchRef, reference: LogprobsRef | None, path: str) -> None:
            raise CheckpointError(f"{path}: no space left on device")

    config = RunConfig(train=TrainConfig(max_skipped_steps=1))
    skipped = replace(make_update(), skipped=True, loss=math.inf)
    steps = SkippedSteps(config, FullDisk(), "sft-step")
    with pytest.raises(
        NonFiniteError, match=r"sft-step 7 with loss inf .* could not be kept: .*00000007.* no space left"
    ):
        asyncio.run(steps.observe(7, skipped, BatchRef(batch_of(3)), None))


@pytest.mark.parametrize("reference", [None, (np.array([-1.0, -np.inf], np.float32), np.zeros(0, np.float32))])
def test_a_kept_batch_can_be_read_again(tmp_path: Path, reference: tuple[np.ndarray, ...] | None) -> None:
    saved = SavedBatch(batch=batch_of(2, 5), reference=reference)
    path = tmp_path / "skipped-step-00000006.msgpack"
    write_batch(str(path), saved)
    assert encode(read_batch(str(path))) == encode(saved)
    for damaged in (path.read_bytes()[:-1], b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{path}: can't be read"):
            read_batch(str(path))
    with pytest.raises(CheckpointError, match="nowhere"):
        read_batch(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="nowhere"):
        write_batch(str(tmp_path / "nowhere" / "batch"), saved)


def test_a_kept_batch_can_be_looked_at_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert example is not None
    (tmp_path / "outputs" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_batch("outputs/run/skipped-step-00000012.msgpack", SavedBatch(batch=batch_of(2, 5), reference=None))
    exec(example[1], {})
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["2", "5"]


class Collapsing(FakePolicy):
    """Its entropy is gone from the fourth update on; the second is skipped, and has none."""

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
        metrics = await super().update(batch, reference)
        entropy = 0.0 if len(self.batches) >= 4 else 0.5
        return replace(metrics, entropy=math.nan if metrics.skipped else entropy)


def collapse(action: str, log: StepList) -> None:
    guard = GuardConfig(action=action, window=2, min_entropy=0.1, min_reward_fraction=0)
    algo = AlgoConfig(token_budget=50, max_staleness=9)
    run(algo, policy=Collapsing(skips={2}), guard=guard, log=log, steps=7)


def test_the_guard_stops_a_run_that_collapsed() -> None:
    log = StepList()
    with pytest.raises(CollapseError, match=r"steps 4 to 5 the mean policy/entropy 0 is below guard.min_entropy=0.1"):
        collapse("stop", log)
    assert len(log.steps) == 5


def test_the_guard_asks_to_go_back_to_before_the_steps_that_show_it() -> None:
    with pytest.raises(RollBackError, match=r"guard.action=rollback") as raised:
        collapse("rollback", StepList())
    assert isinstance(raised.value, CollapseError)
    assert raised.value.before == 3


def test_by_default_the_guard_is_off() -> None:
    log = StepList()
    collapse(GuardConfig().action, log)
    assert len(log.steps) == 7
