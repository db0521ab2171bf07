"""What leaves the training engine: the weights that go to the rollout engines, and the saved model."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoTokenizer, HrmTextConfig, HrmTextForCausalLM, Qwen3Config, Qwen3ForCausalLM

from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.tiny_model import make_tiny_model, make_tiny_tokenizer
from tests.integration.training import batches, make_engine, references, run_ranks

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# Experts that are one parameter, a tied output matrix, and one tensor of the checkpoint in several parameters.
MODELS = ("qwen3_moe", "qwen3_tied", "hrm_text")
CASES = [(model, stage, "float32") for model in MODELS for stage in (1, 3)]
CASES += [("qwen3_moe", stage, "bfloat16") for stage in (1, 3)]


def make_models(directory: Path) -> None:
    make_tiny_model(directory / "qwen3_moe", seed=0, hidden_size=32)
    torch.manual_seed(0)
    dense = Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True))
    recurrent = HrmTextForCausalLM(HrmTextConfig(**SIZES))
    for name, model in (("qwen3_tied", dense), ("hrm_text", recurrent)):
        model.save_pretrained(directory / name)
        make_tiny_tokenizer().save_pretrained(directory / name)


def leave(directory: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """One rank: for each case the weights before and after a step, and after that the saved model."""
    found = {}
    for model, stage, dtype in CASES:
        engine = make_engine(f"{directory}/{model}", rank, ranks, port, zero_stage=stage, dtype=dtype)
        before = snapshot(engine)
        engine.update(batches()[0], references(batches()[0]))
        after, gathered = snapshot(engine), most_gathered(engine)
        saved = f"{directory}/{ranks} {model} {stage} {dtype}"
        engine.save(saved)
        engine.close()
        found[model, stage, dtype] = {"before": before, "after": after, "gathered": gathered, "saved": saved}
    return found


def snapshot(engine: DeepSpeedEngine) -> dict[str, torch.Tensor]:
    names_and_tensors = [(name, tensor.clone()) for name, tensor in engine.weights()]
    assert len(dict(names_and_tensors)) == len(names_and_tensors)
    return dict(names_and_tensors)


def most_gathered(engine: DeepSpeedEngine) -> int:
    """Parameters that ZeRO-3 holds unsharded at a time while it hands out the weights, once more after `snapshot`."""
    parameters = [parameter for parameter in engine._policy.parameters() if hasattr(parameter, "ds_status")]
    return max(sum(p.ds_status.name == "AVAILABLE" for p in parameters) for _ in engine.weights())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    directory = tmp_path_factory.mktemp("models")
    make_models(directory)
    return run_ranks(leave, str(directory), str(directory))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("model", "stage", "dtype"), CASES)
def test_weights_are_those_of_the_saved_model(
    results: dict[int, list[Any]], model: str, stage: int, dtype: str, ranks: int
) -> None:
    first, *others = (result[model, stage, dtype] for result in results[ranks])
    saved = safetensors.torch.load_file(f"{first['saved']}/model.safetensors")
    original = Path(first["saved"]).parent / model / "model.safetensors"
    assert first["after"].keys() == saved.keys() == safetensors.torch.load_file(original).keys()
    for name, tensor in saved.items():
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(first["after"][name], tensor), name
    for other in others:
        assert list(other["after"]) == list(first["after"])
        assert all(torch.equal(tensor, first["after"][name]) for name, tensor in other["after"].items())


@pytest.mark.parametrize(("model", "stage", "dtype"), CASES)
def test_weights_are_those_of_the_moment(results: dict[int, list[Any]], model: str, stage: int, dtype: str) -> None:
    (found,) = (result[model, stage, dtype] for result in results[1])
    original = safetensors.torch.load_file(Path(found["saved"]).parent / model / "model.safetensors")
    for name, tensor in original.items():
        assert torch.equal(found["before"][name], tensor.to(getattr(torch, dtype))), name
        # A norm's weights are 1 at first, and the next bfloat16 is further than a step goes.
        assert tensor.ndim == 1 or not torch.equal(found["after"][name], found["before"][name]), name


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("model", "most"), [("qwen3_moe", 1), ("qwen3_tied", 1), ("hrm_text", 4)])
def test_zero_3_gathers_no_more_than_a_conversion_needs(
    results: dict[int, list[Any]], model: str, most: int, ranks: int
) -> None:
    assert [result[model, 3, "float32"]["gathered"] for result in results[ranks]] == [most] * ranks


def test_a_saved_model_has_its_tokenizer(results: dict[int, list[Any]]) -> None:
    saved = AutoTokenizer.from_pretrained(results[2][0]["qwen3_moe", 1, "float32"]["saved"])
    original = make_tiny_tokenizer()
    assert saved.encode("12+34=") == original.encode("12+34=")
    assert saved.chat_template == original.chat_template
