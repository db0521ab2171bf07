"""`jobs/export.py`: what it writes is what transformers and vLLM load."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ring_ray.checkpoint.export import export_model
from ring_ray.checkpoint.store import CheckpointError, CheckpointStore, write_file
from ring_ray.checkpoint.tensors import write_tensors
from ring_ray.config import CheckpointConfig, ModelConfig
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.engines.vllm import VllmEngine
from ring_ray.types import Sequence
from tests.conftest import Run
from tests.integration.commands import Command, Finished
from tests.integration.policies import ROLLOUT, context, generate_all

Checkpoint = Callable[..., str]


def export(*args: str) -> Finished:
    return Command("jobs/export.py", *args).finish()


def trained(base: str) -> torch.nn.Module:
    """``base`` after some training: no weight is what it was."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def checkpoint(tiny: str, tmp_path: Path) -> Checkpoint:
    """Writes one of `trained`, by two ranks."""

    def write(dtype: str = "float32", without: str = "") -> str:
        store = CheckpointStore(str(tmp_path / "checkpoints"), CheckpointConfig())
        url = store.begin(20)
        masters = {name: p.detach() for name, p in trained(tiny).named_parameters() if name != without}
        state = {"step": 20, "origin": {"model_path": tiny}, "config": {"model": {"path": None, "dtype": dtype}}}
        records = [write_file(url, "state.json", [msgspec.json.encode(state)])]
        for rank in range(2):
            share = dict(list(masters.items())[rank::2])
            moments = {f"{name}#exp_avg": torch.full_like(tensor, torch.nan) for name, tensor in share.items()}
            records += write_tensors(url, f"policy-{rank:05d}", share | moments | {"step": torch.tensor(20)})
        store.commit(20, records, 0.5)
        return url

    return write


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_the_trained_weights(checkpoint: Checkpoint, tiny: str, tmp_path: Path, dtype: str) -> None:
    target = tmp_path / "exported"
    export_model(checkpoint(dtype), str(target))
    trained(tiny).to(getattr(torch, dtype)).save_pretrained(tmp_path / "reference")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("exported", "reference"))
    assert found.keys() == expected.keys() == load_file(Path(tiny) / "model.safetensors").keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}

    loaded, reference = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("exported", "reference"))
    assert loaded.dtype == getattr(torch, dtype)
    ids = torch.tensor([AutoTokenizer.from_pretrained(target)("Calculate 32 + 15.")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, reference(ids).logits)


def test_vllm_samples_from_the_trained_weights(checkpoint: Checkpoint, tiny: str, tmp_path: Path, run: Run) -> None:
    target = str(tmp_path / "exported")
    finished = export(checkpoint(), target)
    assert (finished.status, finished.output.strip().splitlines()[-1]) == (0, target)
    engine = VllmEngine(target, ModelConfig(), ROLLOUT, "cpu", seed=0)
    prompts = [np.arange(length, 2 * length, dtype=np.int32) for length in (3, 20, 40)]
    sequences = run(generate_all(engine, [Sequence.start(prompt) for prompt in prompts]))
    run(engine.close())
    model = trained(tiny)
    for sequence in sequences:
        with torch.no_grad():
            logits = model(context(sequence)).logits[0, len(sequence.prompt_ids) - 1 : -1]
        drawn = torch.from_numpy(sequence.response_ids).long()[:, None]
        expected = logits.log_softmax(dim=-1).gather(1, drawn)[:, 0]
        torch.testing.assert_close(torch.from_numpy(sequence.logprobs), expected, rtol=0, atol=1e-4)


def test_a_model_that_was_moved_is_said_where(checkpoint: Checkpoint, tiny: str, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    make_tiny_model(moved, seed=3, hidden_size=32)
    export_model(checkpoint(), str(tmp_path / "exported"), model_path=str(moved))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert all(map(torch.equal, found.parameters(), trained(tiny).parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"without": "model.norm.weight"}, "lacks 1 tensors of .*, such as model.norm.weight"),
        ({"dtype": "float8"}, "state.json: .*model.dtype='float8'"),
    ],
)
def test_a_checkpoint_that_is_none_of_this_model_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        export_model(checkpoint(**arguments), str(tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


def test_another_shape_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "wide", seed=0, hidden_size=64)
    with pytest.raises(CheckpointError, match=r"lm_head.weight is \[259, 32\], but \[259, 64\] in .*wide"):
        export_model(checkpoint(), str(tmp_path / "exported"), model_path=str(tmp_path / "wide"))


def test_nothing_is_written_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="is not empty"):
        export_model(checkpoint(), str(tmp_path))


def test_damage_is_one_line_for_the_user(checkpoint: Checkpoint, tmp_path: Path) -> None:
    url = checkpoint()
    file = tmp_path / "checkpoints/step-00000020/policy-00001-00000.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    finished = export(url, str(tmp_path / "exported"))
    assert finished.status == 2
    assert f"{file.name}: its content is not what was written" in finished.output
    assert "Traceback" not in finished.output
    assert not (tmp_path / "exported").exists()
