"""Mistakes that a user makes: each ends with one line that names the key or the place, and leaves nothing running."""

import json
from pathlib import Path

import pytest

from tests.integration.commands import Command, train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    assert Command("jobs/make_model.py", str(path)).finish().status == 0
    return path


def rows(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return f"data.path={path}"


GOOD = json.dumps({"prompt": "What is 1 + 1?", "answer": "2"})


def refused(run_dir: Path, message: str, *overrides: str) -> None:
    run = train(*overrides, f"hydra.run.dir={run_dir}")
    assert run.status not in (0, None)
    assert message in run.output
    assert "Traceback" not in run.output
    assert run.left_over == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+algo.nope=1", "nope"),
        ("algo.token_budget=0", "algo.token_budget=0"),
        ("algo.token_budget=1000000000", "algo.token_budget=1000000000"),
        ("algo.group_size=1", "algo.group_size=1"),
        ("cluster.policy.cpus=1000", "asked  available"),
        ("cluster.address=http://127.0.0.1:8265", "cluster.address='http"),
        ("rollout.max_prompt_tokens=4", "rollout.max_prompt_tokens=4"),
        ("rollout.max_response_tokens=4096", "rollout.max_response_tokens=4096"),
    ],
)
def test_config(tmp_path: Path, override: str, message: str) -> None:
    refused(tmp_path, message, override)


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ([GOOD, ""], "problems.jsonl:2"),
        ([GOOD, '{"prompt": "What'], "problems.jsonl:2"),
        ([GOOD, '{"prompt": "What is 2 + 2?"}'], "problems.jsonl:2"),
    ],
)
def test_data(tmp_path: Path, model: Path, lines: list[str], place: str) -> None:
    refused(tmp_path, place, "data=jsonl", rows(tmp_path / "problems.jsonl", *lines), f"model.path={model}")


def test_model_without_a_tokenizer(tmp_path: Path, model: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((model / file).read_bytes())
    refused(tmp_path, f"model.path='{bare}'", f"model.path={bare}")
