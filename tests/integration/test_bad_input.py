"""Mistakes that a user makes: each ends with one line that names the key or the place, and leaves nothing running."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from ring_ray import compose
from ring_ray.engines.tiny_model import make_tiny_model, make_tiny_tokenizer
from ring_ray.rewards.sandbox.languages import TOOLCHAINS
from tests.integration.commands import train

GOOD = json.dumps({"prompt": "What is 1 + 1?", "answer": "2"})
SMALL = "algo.token_budget=100"  # a pass over two rows fills a step
Refused = Callable[..., None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_tiny_model(path, seed=0, hidden_size=32)
    return path


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What jobs/train.py does, here, where nothing must have been started when it is refused."""

    def refuse(message: str, *overrides: str) -> None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which main sets: restored afterwards
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides, f"hydra.run.dir={tmp_path}"])
        before = psutil.Process().children(recursive=True)
        with pytest.raises(SystemExit, match="2"):
            compose.main()
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert "Traceback" not in error
        assert not ray.is_initialized()
        assert psutil.Process().children(recursive=True) == before

    return refuse


def rows(path: Path, *lines: str) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return f"data.path={path}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+algo.nope=1", "nope"),
        ("algo.token_budget=0", "algo.token_budget=0"),
        ("algo.token_budget=1000000000", "algo.token_budget=1000000000"),
        ("algo.group_size=1", "algo.group_size=1"),
        ("rollout.max_prompt_tokens=4", "rollout.max_prompt_tokens=4"),
        ("rollout.max_response_tokens=4096", "rollout.max_response_tokens=4096"),
        ("checkpoint.directory=nosuch://bucket", "checkpoint.directory='nosuch://bucket"),
        ("resume=nosuch://bucket/step-00000001", "nosuch://bucket/step-00000001: no such file system"),
    ],
)
def test_config(refused: Refused, override: str, message: str) -> None:
    refused(message, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.policy.cpus=1000", "asked  available"),
        ("cluster.address=http://127.0.0.1:8265", "cluster.address='http"),
        ("data.path=problems.json", "data.path='problems.json': no such file"),
    ],
)
def test_the_command(tmp_path: Path, override: str, message: str) -> None:
    run = train(override, *(["data=jsonl"] if "data" in override else []), f"hydra.run.dir={tmp_path}")
    assert run.status not in (0, None)
    assert message in run.output
    assert "Traceback" not in run.output
    assert run.left_over == []


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ([GOOD, ""], "problems.jsonl:2"),
        ([GOOD, '{"prompt": "What'], "problems.jsonl:2"),
        ([GOOD, '{"prompt": "What is 2 + 2?"}'], "problems.jsonl:2"),
    ],
)
def test_data(refused: Refused, tmp_path: Path, model: Path, lines: list[str], place: str) -> None:
    refused(place, "data=jsonl", rows(tmp_path / "problems.jsonl", *lines), f"model.path={model}")


def code(**problem: object) -> str:
    return json.dumps({"prompt": "Print the sum.", "verifier": "code", "answer": problem})


def test_code_without_a_sandbox(refused: Refused, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    data = rows(tmp_path / "problems.jsonl", GOOD, code(tests=[{"input": "1 2", "output": "3"}]))
    refused("apt install bubblewrap", SMALL, "data=jsonl", data, f"model.path={model}")


def test_code_that_can_not_be_judged(
    refused: Refused, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = rows(tmp_path / "problems.jsonl", GOOD, code(tests=[]))
    refused("problems.jsonl:2: tests, calls, unit_tests", SMALL, "data=jsonl", unreadable, f"model.path={model}")
    monkeypatch.setitem(TOOLCHAINS, "java", replace(TOOLCHAINS["java"], compiler="javac-99"))
    java = rows(tmp_path / "problems.jsonl", GOOD, code(language="java", tests=[{"output": "3"}]))
    refused("problems.jsonl:2: java needs javac-99", SMALL, "data=jsonl", java, f"model.path={model}")


@pytest.mark.parametrize(("verifier", "key"), [("judge", "reward.judge.url"), ("reward_model", "reward.model.url")])
def test_a_verifier_that_needs_a_server(refused: Refused, tmp_path: Path, model: Path, verifier: str, key: str) -> None:
    questions = [json.dumps({"prompt": f"Why {number}?", "answer": "so", "verifier": verifier}) for number in range(40)]
    data = rows(tmp_path / "problems.jsonl", *questions)
    refused(f"{key}=None: must be the address of a server", SMALL, "data=jsonl", data, f"model.path={model}")


def test_model_without_a_tokenizer(refused: Refused, tmp_path: Path, model: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        (bare / file).write_bytes((model / file).read_bytes())
    refused(f"model.path='{bare}'", f"model.path={bare}")


def test_model_of_another_tokenizer(refused: Refused, tmp_path: Path) -> None:
    make_tiny_model(other := tmp_path / "other", seed=0, hidden_size=32)
    more = make_tiny_tokenizer()
    more.add_tokens(["<|more|>"])
    more.save_pretrained(other)
    refused("its tokenizer has 260 ids, its embedding only 259 rows", f"model.path={other}")


def test_tokenizer_without_a_model(refused: Refused, tmp_path: Path) -> None:
    make_tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    refused("no config.json", f"model.path={tmp_path / 'tokenizer'}")
