"""The policy's training state: taken, brought to another engine, and trained on as if nothing had happened."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.engines.training_state import MOMENTS, STEPS, balance
from ring_ray.types import UpdateMetrics
from tests.integration.training import LEARNING_RATE, batches, make_engine, references, run_ranks
from tests.integration.training import STEPS as LAST

TAKEN_AFTER, WARMUP = 2, 4  # steps
BOUND = 1e-6  # see test_deepspeed_engine.py

VARIANTS: dict[str, dict[str, Any]] = {
    "no ZeRO": {"zero_stage": 0},
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-2": {"zero_stage": 2},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-2, optimizer on the host": {"zero_stage": 2, "offload_optimizer": True},
    "ZeRO-1, bfloat16": {"zero_stage": 1, "dtype": "bfloat16"},
    "ZeRO-3, bfloat16": {"zero_stage": 3, "dtype": "bfloat16"},
    "ZeRO-3, bfloat16, all on the host": {
        "zero_stage": 3,
        "dtype": "bfloat16",
        "offload_optimizer": True,
        "offload_parameters": True,
    },
}
# One rank alone shares nothing: of what two ranks are tested with it needs each way that parameters are held.
OF_RANKS = {1: ("no ZeRO", "ZeRO-1", "ZeRO-3", "ZeRO-1, bfloat16"), 2: tuple(VARIANTS)}
RANKS_AND_VARIANTS = [(ranks, name) for ranks, names in OF_RANKS.items() for name in names]
MOVES = [  # ranks and variant that a state comes from, and goes to
    ((1, "ZeRO-1"), (2, "ZeRO-1")),
    ((2, "ZeRO-1"), (1, "ZeRO-1")),
    ((1, "ZeRO-3"), (2, "ZeRO-3")),
    ((2, "ZeRO-3"), (1, "ZeRO-3")),
    ((1, "ZeRO-1"), (1, "ZeRO-3")),
    ((2, "ZeRO-2, optimizer on the host"), (2, "ZeRO-3")),
    ((2, "ZeRO-3"), (2, "no ZeRO")),
    ((1, "no ZeRO"), (2, "ZeRO-2")),
    ((1, "ZeRO-1, bfloat16"), (2, "ZeRO-3, bfloat16")),
    ((2, "ZeRO-3, bfloat16"), (1, "ZeRO-1, bfloat16")),
]
RESUMED = [(place, place) for place in RANKS_AND_VARIANTS] + MOVES

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """What an engine is after the last step."""

    metrics: list[UpdateMetrics]  # of the steps that it took
    weights: State
    share: State

    @classmethod
    def by(cls, engine: DeepSpeedEngine, first: int) -> "Trained":
        metrics = [engine.update(batch, references(batch)) for batch in batches()[first:]]
        return cls(metrics, weights(engine), engine.snapshot())


def weights(engine: DeepSpeedEngine) -> State:
    return {name: tensor.clone() for name, tensor in engine.weights()}


def make_models(directory: Path, seed: int) -> str:
    """One for each dtype: in float32 sizes that two ranks can't halve and a tied output matrix, in bfloat16 experts."""
    sizes = {"vocab_size": 259, "num_hidden_layers": 2, "head_dim": 16, "num_attention_heads": 2}
    torch.manual_seed(seed)
    dense = Qwen3Config(**sizes, num_key_value_heads=1, hidden_size=33, intermediate_size=65, tie_word_embeddings=True)
    Qwen3ForCausalLM(dense).save_pretrained(directory / "float32")
    make_tiny_model(directory / "bfloat16", seed=seed, hidden_size=32)
    return str(directory)


def start(directory: str, name: str, rank: int, ranks: int, port: int) -> DeepSpeedEngine:
    return make_engine(model_of(directory, name), rank, ranks, port, warmup_steps=WARMUP, **VARIANTS[name])


def model_of(directory: str | Path, name: str) -> str:
    return f"{directory}/{VARIANTS[name].get('dtype', 'float32')}"


def interrupt(models: str, directory: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """One rank: each variant left alone, and with a snapshot after some steps, to which it is then set back."""
    gc.freeze()  # an engine that is closed collects garbage: not from all modules' objects
    found: dict[str, Any] = {}
    for name in OF_RANKS[ranks]:
        engine = start(models, name, rank, ranks, port)
        alone = Trained.by(engine, 0)
        engine.close()
        engine = start(models, name, rank, ranks, port)
        untrained = engine.snapshot()
        for batch in batches()[:TAKEN_AFTER]:
            engine.update(batch, references(batch))
        engine.offload()
        share = engine.snapshot()
        torch.save(share, f"{directory}/{name} {rank} of {ranks}")
        taken = weights(engine)
        snapped = Trained.by(engine, TAKEN_AFTER)
        engine.update(batches()[0], references(batches()[0]))  # after a step ZeRO-3 keeps small parameters gathered
        dist.barrier()
        engine.offload()
        engine.restore(stored(directory, name, ranks))
        set_back = Trained.by(engine, TAKEN_AFTER)
        engine.close()
        found[name] = {"untrained": untrained, "share": share, "taken": taken}
        found[name] |= {"alone": alone, "snapped": snapped, "set back": set_back}
    return found


def stored(directory: str, name: str, ranks: int) -> Iterator[tuple[str, torch.Tensor]]:
    for rank in range(ranks):
        yield from torch.load(f"{directory}/{name} {rank} of {ranks}").items()


def resume(models: str, directory: str, rank: int, ranks: int, port: int) -> dict[Any, Any]:
    """One rank: engines that start from another model, are given a state, and go on."""
    gc.freeze()
    found: dict[Any, Any] = {}
    for (ranks_before, name_before), (ranks_after, name) in RESUMED:
        if ranks_after != ranks:
            continue
        engine = start(models, name, rank, ranks, port)
        engine.restore(stored(directory, name_before, ranks_before))
        restored, share = weights(engine), engine.snapshot()
        trained = Trained.by(engine, TAKEN_AFTER)
        found[(ranks_before, name_before), (ranks, name)] = {"restored": restored, "share": share, "trained": trained}
        engine.close()
    found["refused"] = [refuse(models, directory, name, rank, ranks, port) for name in ("ZeRO-1", "ZeRO-3")]
    return found


def refuse(models: str, directory: str, name: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """The errors of an engine that is given states that are not its own, and what it says when it then gets its own.

    That has a negative zero in each tensor, which no sum with another rank's zeros may lose.
    """
    engine = start(models, name, rank, ranks, port)
    state = dict(stored(directory, name, ranks))
    norm = "model.norm.weight"
    wrong: dict[str, list[tuple[str, torch.Tensor]]] = {
        "unknown": [("model.other.weight", state[norm])],
        "twice": [(norm, state[norm]), (norm, state[norm])],
        "shape": [(norm, state[norm][1:])],
        "dtype": [(f"{norm}#exp_avg", state[norm].bfloat16())],
        "missing": [item for item in state.items() if item[0] != f"{norm}#exp_avg_sq"],
        "no steps": [item for item in state.items() if item[0] != STEPS],
    }
    errors = {}
    for kind, tensors in wrong.items():
        with pytest.raises(ValueError, match=r".") as error:
            engine.restore(tensors)
        errors[kind] = str(error.value)
    for tensor in state.values():
        tensor.view(-1)[0] = -0.0
    engine.restore(state.items())
    share = engine.snapshot()
    engine.close()
    return {"errors": errors, "given": state, "share": share}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def before(directory: Path) -> dict[int, list[Any]]:
    return run_ranks(interrupt, str(directory), make_models(directory / "model", seed=0), str(directory))


@pytest.fixture(scope="module")
def after(before: dict[int, list[Any]], directory: Path) -> dict[int, list[Any]]:
    return run_ranks(resume, str(directory), make_models(directory / "other", seed=1), str(directory))


def merged(shares: list[State]) -> State:
    """Of all ranks, in the order of the names."""
    names = sorted(name for share in shares for name in share)
    assert len(set(names)) == len(names)
    whole = {name: tensor for share in shares for name, tensor in share.items()}
    return {name: whole[name] for name in names}


def assert_same(left: State, right: State) -> None:
    """Bit by bit."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(bits(tensor), bits(right[name])), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_trained_the_same(left: list[Trained], right: list[Trained]) -> None:
    """Ranks that took the same steps last."""
    for one, other in zip(left, right, strict=True):
        taken = min(len(one.metrics), len(other.metrics))
        assert one.metrics[-taken:] == other.metrics[-taken:]
        assert_same(one.weights, other.weights)
        assert_same(one.share, other.share)


@pytest.mark.parametrize(("ranks", "name"), RANKS_AND_VARIANTS)
def test_a_snapshot_changes_nothing(before: dict[int, list[Any]], ranks: int, name: str) -> None:
    found = [result[name] for result in before[ranks]]
    assert_trained_the_same([rank["alone"] for rank in found], [rank["snapped"] for rank in found])


@pytest.mark.parametrize(("ranks", "name"), RANKS_AND_VARIANTS)
def test_an_engine_can_be_set_back(before: dict[int, list[Any]], ranks: int, name: str) -> None:
    found = [result[name] for result in before[ranks]]
    assert_trained_the_same([rank["alone"] for rank in found], [rank["set back"] for rank in found])


@pytest.mark.parametrize(("ranks", "name"), RANKS_AND_VARIANTS)
def test_another_engine_goes_on_bit_by_bit(
    before: dict[int, list[Any]], after: dict[int, list[Any]], ranks: int, name: str
) -> None:
    place = (ranks, name)
    resumed = [result[place, place]["trained"] for result in after[ranks]]
    assert_trained_the_same([result[name]["alone"] for result in before[ranks]], resumed)
    rates = [metrics.learning_rate for metrics in resumed[0].metrics]
    assert rates == [LEARNING_RATE * min(1.0, step / WARMUP) for step in range(TAKEN_AFTER + 1, LAST + 1)]


@pytest.mark.parametrize(("source", "target"), RESUMED)
def test_a_restored_engine_has_the_state_bit_by_bit(
    before: dict[int, list[Any]], after: dict[int, list[Any]], source: tuple[int, str], target: tuple[int, str]
) -> None:
    taken = [result[source[1]] for result in before[source[0]]]
    found = [result[source, target] for result in after[target[0]]]
    assert_same(merged([rank["share"] for rank in taken]), merged([rank["share"] for rank in found]))
    for rank in found:
        assert_same(rank["restored"], taken[0]["taken"])


@pytest.mark.parametrize(("source", "target"), [move for move in MOVES if "bfloat16" not in move[0][1]])
def test_other_ranks_and_stages_go_on(
    before: dict[int, list[Any]], after: dict[int, list[Any]], source: tuple[int, str], target: tuple[int, str]
) -> None:
    expected = before[source[0]][0][source[1]]["alone"].weights
    for result in after[target[0]]:
        found = result[source, target]["trained"].weights
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=BOUND, rtol=0, msg=name)


@pytest.mark.parametrize(("ranks", "name"), RANKS_AND_VARIANTS)
def test_a_state_is_that_of_the_moment(before: dict[int, list[Any]], directory: Path, ranks: int, name: str) -> None:
    """And each parameter's comes once, a tied one under its first name."""
    dtype = VARIANTS[name].get("dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(model_of(directory / "model", name), dtype=dtype)
    parameters = dict(model.named_parameters())
    assert ("lm_head.weight" in parameters) == (dtype == "bfloat16")
    for moment, steps in (("untrained", 0), ("share", TAKEN_AFTER)):
        state = merged([result[name][moment] for result in before[ranks]])
        assert state.pop(STEPS).item() == steps
        assert state.keys() == {f"{one}{kind}" for one in parameters for kind in ("", *(f"#{m}" for m in MOMENTS))}
        for parameter_name, parameter in parameters.items():
            assert state[parameter_name].dtype == torch.float32
            assert torch.equal(state[parameter_name], parameter.float()) == (steps == 0), parameter_name
            for adam in MOMENTS:
                assert state[f"{parameter_name}#{adam}"].any() == (steps > 0), parameter_name


@pytest.mark.parametrize("name", VARIANTS)
def test_ranks_share_a_state_equally(before: dict[int, list[Any]], name: str) -> None:
    first, second = (sum(tensor.nbytes for tensor in result[name]["share"].values()) for result in before[2])
    assert first == pytest.approx(second, rel=0.05)


def test_sizes_are_balanced() -> None:
    sizes = {"a": 5, "b": 5, "c": 4, "d": 4, "e": 3, "f": 3}
    owners = balance(sizes, 3)
    assert owners.keys() == sizes.keys()
    assert [sum(size for name, size in sizes.items() if owners[name] == rank) for rank in range(3)] == [8, 8, 8]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_state_of_something_else_is_refused_by_name(after: dict[int, list[Any]], ranks: int) -> None:
    for result in after[ranks]:
        for refused in result["refused"]:
            assert refused["errors"] == {
                "unknown": "model.other.weight: the model has no such training state, or it came before",
                "twice": "model.norm.weight: the model has no such training state, or it came before",
                "shape": "model.norm.weight: is float32 [32], but the model's is float32 [33]",
                "dtype": "model.norm.weight#exp_avg: is bfloat16 [33], but the model's is float32 [33]",
                "missing": "model.norm.weight#exp_avg_sq: missing in the training state, the first of 1",
                "no steps": "#steps: missing in the training state, the first of 1",
            }


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_negative_zero_stays_negative(after: dict[int, list[Any]], ranks: int) -> None:
    for index in range(2):
        found = [result["refused"][index] for result in after[ranks]]
        assert_same(merged([found[0]["given"]]), merged([rank["share"] for rank in found]))
