"""The evidence of `tests/chaos`: a run that loses nothing passes, and one token lost or trained twice is found."""

import asyncio
from collections.abc import Awaitable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ring_ray.config import AlgoConfig, TrainConfig
from ring_ray.evaluation import evaluate
from ring_ray.metrics import Values
from ring_ray.roles import BatchRef, BufferStatus, Roles, RolloutRef
from ring_ray.stream import RolloutStream, StreamSnapshot
from ring_ray.sync import WeightSync
from ring_ray.types import BatchSummary, Ledger, Reward, Rollout, RolloutStatus, TokenBatch, Verdict
from tests.chaos.evidence import Evidence, evidence
from tests.chaos.journal import Journal, Scored, read_journal
from tests.chaos.recording import recorded_roles
from tests.chaos.soak import BOUND_A_STEP, CACHES, MIB, Sample, growth
from tests.chaos.victims import kind_of, name_of
from tests.unit.fakes import FakePolicy, FakePrompts, FakeReward, FakeRollout, LocalBuffer, make_prompt

ALGO = AlgoConfig(token_budget=150, group_size=4, max_staleness=1)
STEPS = 6


class Run:
    """A run on fakes that writes its journal, and the rows that it reports."""

    def __init__(self, directory: Path, algo: AlgoConfig = ALGO) -> None:
        self.algo, self.journal = algo, directory / "journal.jsonl"
        self.rows: list[Values] = []
        self.snapshots: dict[int, StreamSnapshot] = {}  # by step

    def live(self, resumed: int = 0, steps: int = STEPS, **roles: Any) -> None:
        """A driver's life, from the snapshot of step ``resumed`` or anew, until it is killed after ``steps``."""
        journal = Journal(self.journal)
        asyncio.run(asyncio.wait_for(self._live(resumed, steps, journal, roles), timeout=60))
        journal.close()

    async def _live(self, resumed: int, steps: int, journal: Journal, fakes: dict[str, Any]) -> None:
        engines = fakes.get("rollout") or FakeRollout()
        roles = Roles(
            policy=fakes.get("policy") or FakePolicy(),
            rollout=engines,
            reward=fakes.get("reward") or FakeReward(),
            buffer=fakes.get("buffer") or LocalBuffer(self.algo),
            archive=None,  # type: ignore[arg-type]  # nobody asks for it
            reference=None,
        )
        roles = recorded_roles(roles, journal)
        stream = RolloutStream(
            prompts=FakePrompts(),
            rollout=roles.rollout,
            sync=WeightSync(roles.policy, roles.rollout, verify=False, take_turns=False),
            reward=roles.reward,
            buffer=roles.buffer,
            algo=self.algo,
            overlap=True,
            max_in_flight=4 * self.algo.group_size,
            max_response_tokens=30,
        )
        await roles.policy.start("model", TrainConfig(), self.algo)
        if resumed:
            await roles.policy.restore(f"file:///run/checkpoints/step-{resumed:08d}")
            engines.version = resumed
            await stream.restore(self.snapshots[resumed])
        self.rows = self.rows[:resumed]
        async with stream:
            for step in range(resumed + 1, steps + 1):
                batch, summary = await stream.take()
                await roles.policy.update(batch, None)
                ledger = await stream.settle(version=step)
                self.snapshots[step] = await stream.snapshot()
                await stream.go_on(version=step)
                self.rows.append(row(step, summary.trained_tokens, ledger, self.algo))
        if steps == STEPS:
            await evaluate([make_prompt(index) for index in range(3)], roles.rollout, FakeReward(Verdict.WRONG))

    def evidence(self) -> Evidence:
        return evidence(read_journal(self.journal), self.rows, self.algo)


def row(step: int, trained: int, ledger: Ledger, algo: AlgoConfig) -> Values:
    places = {f"ledger/{place}": tokens for place, tokens in asdict(ledger).items()}
    return {"step": step, "c3po/trained_tokens": trained, "c3po/token_budget": algo.token_budget, **places}


@pytest.mark.parametrize(
    "algo",
    [ALGO, replace(ALGO, max_staleness=0), replace(ALGO, max_staleness=4), replace(ALGO, filter_zero_advantage=True)],
)
def test_a_run_that_loses_nothing_passes(tmp_path: Path, algo: AlgoConfig) -> None:
    run = Run(tmp_path, algo)
    run.live()
    found = run.evidence()
    assert found.problems == []
    assert found.clean
    assert found.steps == STEPS


def test_so_does_one_that_was_killed_and_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(steps=3)
    run.live(resumed=2, steps=5)
    run.live(resumed=4, steps=4)
    run.live(resumed=4)
    assert run.evidence().problems == []


def test_and_one_that_began_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(steps=2)
    run.live()
    assert run.evidence().problems == []


def test_every_place_of_the_ledger_has_tokens_in_these_runs(tmp_path: Path) -> None:
    """That what the recount agrees with is more than nothing."""
    run = Run(tmp_path)
    run.live(reward=SometimesFailing())
    found = run.evidence()
    assert found.problems == []
    assert found.dropped > 0
    assert not found.clean
    for place in ("in_flight", "waiting", "queued", "trained", "evicted", "dropped"):
        assert max(row[f"ledger/{place}"] for row in run.rows) > 0, place


class SometimesFailing(FakeReward):
    async def score(self, rollout: RolloutRef) -> Any:
        assert isinstance(rollout, Rollout)
        rewards = await super().score(rollout)
        failed = rollout.prompt.index % 3 == 0
        return tuple(replace(reward, verdict=Verdict.FAILED) if failed else reward for reward in rewards)


class LosingBuffer(LocalBuffer):
    """Forgets the rewards of a group, which therefore waits for ever."""

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        return await super().score(prompt_index, rewards) if prompt_index != 2 else self._status()


class RepeatingBuffer(LocalBuffer):
    """Gives the first span of each step again in the next one, instead of as many other tokens."""

    last: TokenBatch | None = None

    async def take(self) -> tuple[BatchRef, BatchSummary, BufferStatus]:
        batch, summary, status = await super().take()
        assert isinstance(batch, TokenBatch)
        given, self.last = batch, self.last and replace(self.last, version=batch.version)
        repeated, self.last = self.last or given, given
        return BatchRef(repeated), summary, status


async def sampled(answer: Awaitable[tuple[RolloutRef, RolloutStatus] | None]) -> tuple[RolloutRef, RolloutStatus]:
    found = await answer
    assert found is not None  # no engine is lost here
    return found


class ForgettingRollout(FakeRollout):
    """Begins a response anew that was interrupted in its middle."""

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
        assert isinstance(rollout, Rollout)
        grown, status = await sampled(super().generate(rollout))
        assert isinstance(grown, Rollout)
        changed = tuple(
            replace(new, response_ids=new.response_ids + 1) if 0 < len(old) < len(new) else new
            for old, new in zip(rollout.sequences, grown.sequences, strict=True)
        )
        return RolloutRef(replace(grown, sequences=changed)), status


class MiscountingRollout(FakeRollout):
    """Says of each turn that it sampled a token less than it did, and so does the ledger."""

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
        grown, status = await sampled(super().generate(rollout))
        hidden = min(1, status.in_flight_tokens)
        return grown, replace(
            status, new_tokens=status.new_tokens - hidden, in_flight_tokens=status.in_flight_tokens - hidden
        )


def test_a_group_that_the_buffer_lost_is_found_though_its_ledger_is_balanced(tmp_path: Path) -> None:
    run = Run(tmp_path, replace(ALGO, max_staleness=4))
    run.live(buffer=LosingBuffer(run.algo))
    found = run.evidence()
    assert found.unbalanced == []
    assert found.lost > 0


def test_tokens_that_are_trained_twice_are_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(buffer=RepeatingBuffer(ALGO))
    found = run.evidence()
    assert found.trained_twice > 0
    assert "a second time" in " ".join(found.problems) or "done with" in " ".join(found.problems)


def test_a_response_that_does_not_go_on_where_it_was_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(rollout=ForgettingRollout())
    found = run.evidence()
    assert found.lost > 0
    assert any("did not go on" in problem for problem in found.problems)


def test_tokens_that_no_ledger_ever_had_are_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(rollout=MiscountingRollout(), steps=1)
    found = run.evidence()
    assert found.unbalanced == []
    assert found.lost > 0


def test_a_checkpoint_without_the_unfinished_responses_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(steps=3)
    whole = run.snapshots[3]
    run.snapshots[3] = replace(whole, state=replace(whole.state, unfinished={}), unfinished={})
    with pytest.raises(Exception, match="tokens were generated"):  # the run's own ledger
        run.live(resumed=3)
    assert run.evidence().problems == []  # it has not reported another step


def test_a_buffer_that_goes_back_further_than_the_policy_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live(steps=4)
    first = run.journal.read_bytes()
    run.live(resumed=2)
    assert run.evidence().problems == []
    second = run.journal.read_bytes().removeprefix(first)
    run.journal.write_bytes(first + second.replace(b'"PolicyRestored","step":2', b'"PolicyRestored","step":3'))
    assert any("of the policy" in problem for problem in run.evidence().problems)


def test_a_step_off_the_budget_or_missing_is_found(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.live()
    rows = run.rows
    run.rows = [{**one, "c3po/token_budget": ALGO.token_budget + (one["step"] == 2)} for one in rows]
    assert run.evidence().off_budget == [2]
    run.rows = rows[:2] + rows[3:]
    assert any("each step once" in problem for problem in run.evidence().problems)


def test_equal_responses_may_be_trained_once_each(tmp_path: Path) -> None:
    """They can't be told apart, and are not taken for one that is trained twice."""

    class EqualRollout(FakeRollout):
        async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
            grown, status = await sampled(super().generate(rollout))
            assert isinstance(grown, Rollout)
            equal = tuple(replace(one, logprobs=one.logprobs * 0) for one in grown.sequences)
            return RolloutRef(replace(grown, sequences=equal)), status

        def length(self, rollout: Rollout, response: int) -> float:
            return super().length(rollout, response // 2)

    run = Run(tmp_path)
    run.live(rollout=EqualRollout())
    assert run.evidence().problems == []


def test_a_journal_whose_writer_was_killed_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, second = (Scored(prompt=prompt, reached=True, equal=False) for prompt in (1, 2))
    journal = Journal(path)
    journal.write(first)
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"type":"Sco')
    assert read_journal(path) == [first]
    journal = Journal(path)
    journal.write(second)
    journal.close()
    assert read_journal(path) == [first, second]


@pytest.mark.parametrize(
    ("title", "kind", "name"),
    [
        ("ray::RolloutWorker.generate", "rollout", "rollout"),
        ("ray::rollout engine 0:RolloutWorker.__init__", "rollout", "rollout"),
        ("ray::PolicyWorker", "policy", "policy"),
        ("VLLM::EngineCore", "engine", "engine"),
        ("ray::IDLE", None, "ray::IDLE"),
        ("/venv/lib/ray/core/src/ray/raylet/raylet --socket=/tmp/ray", None, "raylet"),
        ("/venv/bin/python -u /venv/ray/_private/log_monitor.py --logs=/tmp/ray", None, "log_monitor.py"),
        ("/venv/bin/python jobs/train.py train.steps=3", None, "train.py"),
        ("/venv/bin/python -B -c from multiprocessing.resource_tracker import main;main(67)", None, "python"),
    ],
)
def test_processes_are_known_by_their_command_lines(title: str, kind: str | None, name: str) -> None:
    assert kind_of(title) == kind
    assert name_of(title) == name


@pytest.mark.parametrize(("a_step", "too_much"), [(0, False), (BOUND_A_STEP // 2, False), (2 * BOUND_A_STEP, True)])
def test_a_process_that_grows_with_every_step_is_found(a_step: int, too_much: bool) -> None:
    """Beyond what a single jump explains."""
    samples = [Sample(step, 300 * MIB, 200 * MIB + a_step * step + CACHES // 2 * (step > 100)) for step in range(1000)]
    grown = growth(samples)
    assert grown.too_much == too_much
    assert grown.slope == pytest.approx(a_step, abs=CACHES / 500)
