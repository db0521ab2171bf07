"""Memory given back, to the host or for good, and memory never taken; and that training is none the worse for it."""

import gc
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeForCausalLM

from ring_ray.algo.loss import accumulate
from ring_ray.algo.packing import collate, token_weights
from ring_ray.config import ConfigError, ModelConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.hf import CausalPolicy, load_model
from ring_ray.engines.host_memory import HostMemory, free, tensors_in
from ring_ray.engines.modules import recompute_layers
from tests.integration.training import ALGO, TEMPERATURE, batches, make_engine, references, run_ranks

VARIANTS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"zero_stage": 1},
    "ZeRO-1, bfloat16": {"zero_stage": 1, "dtype": "bfloat16"},
    "ZeRO-2, optimizer on the host": {"zero_stage": 2, "offload_optimizer": True},
    "ZeRO-3": {"zero_stage": 3},
    "ZeRO-3, bfloat16, all on the host": {
        "zero_stage": 3,
        "dtype": "bfloat16",
        "offload_optimizer": True,
        "offload_parameters": True,
    },
}
STARTS: dict[str, dict[str, Any]] = VARIANTS | {"ZeRO-3, bfloat16": {"zero_stage": 3, "dtype": "bfloat16"}}
CASES = [(ranks, name) for ranks in (1, 2) for name in VARIANTS]


def held(engine: DeepSpeedEngine | None = None) -> int:
    """Bytes of all tensors of this process, without those that wait on the host for ``engine``."""
    gc.collect()
    hosted = {id(piece) for piece in tensors_in([pieces for _, pieces in engine._host_memory._taken])} if engine else ()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and id(one) not in hosted]
    storages = {one.untyped_storage()._cdata: one.untyped_storage() for one in tensors if one.device.type == "cpu"}
    return sum(storage.nbytes() for storage in storages.values())


def train(engine: DeepSpeedEngine, *, taking_turns: bool) -> dict[str, Any]:
    """Two steps, and what is asked of an engine around them; with ``taking_turns`` it gives its memory back each time.

    ``held`` is what it holds loaded, offloaded, and after the next step.
    """

    def turn() -> None:
        if taking_turns:
            engine.offload()
            engine.offload()

    found: dict[str, Any] = {"held": []}
    turn()
    for batch in batches()[:2]:
        found["metrics"] = engine.update(batch, references(batch))
        found["held"].append(held(engine))
        turn()
        found["held"].append(held(engine))
        found["weights"] = {name: tensor.clone() for name, tensor in engine.weights()}
        turn()
    found["logprobs"] = engine.logprobs(batches()[2])
    turn()
    return found


def lend(path: str, directory: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """One rank: each variant with and without turns."""
    gc.freeze()  # looking for tensors, `held` passes over all modules' objects
    found: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        for taking_turns in (False, True):
            before = held()
            engine = make_engine(path, rank, ranks, port, **variant)
            found[name, taking_turns] = train(engine, taking_turns=taking_turns)
            saved = f"{directory}/{ranks} {name} {taking_turns}"
            engine.save(saved)
            if taking_turns:
                engine.offload()
            engine.close()
            weights = sum(tensor.nbytes for tensor in found[name, taking_turns]["weights"].values())
            found[name, taking_turns] |= {"before": before, "closed": held() - weights, "saved": saved}
    return found


@pytest.fixture(scope="module")
def results(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    directory = str(tmp_path_factory.mktemp("runs"))
    return run_ranks(lend, directory, tiny, directory)


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_taking_turns_changes_nothing(results: dict[int, list[Any]], ranks: int, name: str) -> None:
    for result in results[ranks]:
        kept, lent = result[name, False], result[name, True]
        assert lent["metrics"] == kept["metrics"]
        assert lent["weights"].keys() == kept["weights"].keys()
        assert all(torch.equal(tensor, kept["weights"][tensor_name]) for tensor_name, tensor in lent["weights"].items())
        for left, right in zip(lent["logprobs"], kept["logprobs"], strict=True):
            np.testing.assert_array_equal(left, right)
    saved = [Path(results[ranks][0][name, turns]["saved"]) / "model.safetensors" for turns in (False, True)]
    assert saved[0].read_bytes() == saved[1].read_bytes()


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_an_offloaded_engine_holds_next_to_nothing(results: dict[int, list[Any]], ranks: int, name: str) -> None:
    for result in results[ranks]:
        found = result[name, True]
        model_bytes = sum(tensor.nbytes for tensor in found["weights"].values())
        loaded, offloaded, loaded_again, offloaded_again = (bytes - found["before"] for bytes in found["held"])
        assert loaded > model_bytes / ranks
        assert offloaded < model_bytes / 20
        # Between the two there was a copy of the weights.
        assert loaded_again - model_bytes == pytest.approx(loaded, rel=0.05)
        assert offloaded_again - model_bytes < model_bytes / 20


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_a_closed_engine_holds_nothing(results: dict[int, list[Any]], ranks: int, name: str) -> None:
    for result in results[ranks]:
        for taking_turns in (False, True):
            found = result[name, taking_turns]
            model_bytes = sum(tensor.nbytes for tensor in found["weights"].values())
            assert found["closed"] - found["before"] < model_bytes / 20


def start(path: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """One rank: what engines start with, of a model that asks for norms in float32 whatever the dtype.

    By case: elements of parameters that were moved to the device at once, and the weights after that.
    """
    found: dict[str, Any] = {}
    to = torch.nn.Module.to
    for name, variant in STARTS.items():
        moved: list[int] = []

        def spy(module: torch.nn.Module, *arguments: Any, moved: list[int] = moved, **named: Any) -> torch.nn.Module:
            moved.append(sum(parameter.numel() for parameter in module.parameters()))
            return to(module, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Qwen3MoeForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
            patch.setattr(torch.nn.Module, "to", spy)
            engine = make_engine(path, rank, ranks, port, **variant)
        weights = {tensor_name: tensor.clone() for tensor_name, tensor in engine.weights()}
        engine.update(batches()[0], references(batches()[0]))
        engine.close()
        found[name] = {"moved": moved, "weights": weights}
    return found


def test_only_zero_3_starts_without_the_whole_model_on_the_device(
    tiny: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = load_file(f"{tiny}/model.safetensors")
    whole = sum(tensor.numel() for tensor in checkpoint.values())
    for results in run_ranks(start, str(tmp_path_factory.mktemp("starts")), tiny).values():
        for result, (name, variant) in itertools.product(results, STARTS.items()):
            found, dtype = result[name], getattr(torch, variant.get("dtype", "float32"))
            assert max(found["moved"]) == (0 if variant["zero_stage"] == 3 else whole), name
            assert found["weights"].keys() == checkpoint.keys()
            for tensor_name, tensor in checkpoint.items():
                assert found["weights"][tensor_name].dtype == dtype, (name, tensor_name)
                assert torch.equal(found["weights"][tensor_name], tensor.to(dtype)), (name, tensor_name)


def test_tensors_get_back_what_they_were() -> None:
    """Bits, views of one another, and nothing that torch did not allocate."""
    whole, foreign = torch.arange(12.0), torch.from_numpy(np.arange(3.0))
    whole[3] = float("nan")
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    parameter.grad = torch.full((4,), 2.0, dtype=torch.bfloat16)
    part, expected = whole[4:8].view(2, 2), whole.clone()
    memory = HostMemory()
    memory.take(tensors_in({"whole": [whole, {part}], parameter: None, "foreign": (foreign,)}), torch.device("cpu"))
    assert [one.untyped_storage().nbytes() for one in (whole, part, parameter, parameter.grad)] == [0, 0, 0, 0]
    assert foreign.tolist() == [0, 1, 2]
    memory.give_back()
    assert torch.equal(whole.view(torch.int32), expected.view(torch.int32))
    part.fill_(-1)
    assert whole[4:8].tolist() == [-1] * 4
    assert parameter.tolist() == [1] * 4
    assert parameter.grad.tolist() == [2] * 4
    memory.give_back()
    assert whole[4:8].tolist() == [-1] * 4
    free([part, foreign])
    assert whole.untyped_storage().nbytes() == 0
    assert foreign.tolist() == [0, 1, 2]


class Step:
    """Gradients of one step of a policy by plain torch, and how often the inside of its first layer ran for it."""

    def __init__(self, path: str, *, recompute: bool) -> None:
        policy = CausalPolicy(load_model(path, ModelConfig()), TEMPERATURE)
        if recompute:
            recompute_layers(policy.model)
        self.inside = self.outside = 0
        layer = policy.model.model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_: self.count("inside"))
        layer.register_forward_hook(lambda *_: self.count("outside"))
        batch = batches()[0]
        accumulate(
            policy,
            [collate(batch, tuple(range(len(batch.segments))), token_weights(batch, "budget"), references(batch))],
            ALGO,
            trained_tokens=batch.trained_tokens,
            backward=torch.Tensor.backward,
            sum_over_ranks=lambda values: values,
        )
        self.gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
        self.training = any(module.training for module in policy.model.modules())

    def count(self, where: str) -> None:
        setattr(self, where, getattr(self, where) + 1)


def test_checkpointed_layers_run_again_and_give_the_same_gradients(tiny: str) -> None:
    kept, recomputed = Step(tiny, recompute=False), Step(tiny, recompute=True)
    assert (kept.inside, kept.outside) == (1, 1)
    assert (recomputed.inside, recomputed.outside) == (2, 1)
    assert not recomputed.training  # dropout would be on
    for name, gradient in kept.gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, recomputed.gradients[name]), name


def test_checkpointing_keeps_fewer_activations(tiny: str) -> None:
    """Bytes that the graph of a forward pass holds, by what autograd saves."""
    kept, recomputed = (saved_bytes(tiny, recompute=recompute) for recompute in (False, True))
    assert recomputed < kept / 2


def saved_bytes(path: str, *, recompute: bool) -> int:
    policy = CausalPolicy(load_model(path, ModelConfig()), TEMPERATURE)
    if recompute:
        recompute_layers(policy.model)
    parameters = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        policy.model(input_ids=torch.arange(200)[None], use_cache=False, logits_to_keep=1)
    return sum(saved.values())


def test_a_model_without_named_layers_is_refused(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny, ModelConfig())
    monkeypatch.setattr(model, "_no_split_modules", None)
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing"):
        recompute_layers(model)
