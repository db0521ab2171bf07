import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ring_ray.config import DataConfig, RolloutConfig, RunConfig
from ring_ray.data.rows import DataError
from ring_ray.data.source import PromptSource, load_prompts
from ring_ray.engines.tiny_model import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write lines (objects become JSON) to a file and return its path."""

    def write_lines(*lines: object, name: str = "train.jsonl") -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_lines


def load(path: str, **data: object) -> PromptSource:
    source = DataConfig(source="jsonl", path=path, **data)  # type: ignore[arg-type]
    config = RunConfig(data=source, rollout=RolloutConfig(max_prompt_tokens=64))
    return load_prompts(config, TOKENIZER, ("integer", "math"))


def questions(*numbers: int) -> list[dict[str, str]]:
    return [{"prompt": f"What is {number}?", "answer": str(number)} for number in numbers]


def test_jsonl_rows_become_prompts(write: Write) -> None:
    path = write(
        {"prompt": "Half of 1?", "answer": r"\frac12"},
        {"prompt": "2 + 2?", "answer": 4, "domain": "sums", "verifier": "integer"},
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}],
            "answer": "x",
        },
        {"prompt": "2 + 2?", "answer": "four"},
    )
    source = load(path)
    prompts = {prompt.id: prompt for prompt in (*source.training, *source.held_out)}
    assert set(prompts) == {"train.jsonl:1", "train.jsonl:2", "train.jsonl:3"}  # of equal prompts, the first
    first, second, third = (prompts[f"train.jsonl:{line}"] for line in (1, 2, 3))
    assert (first.text, first.answer, first.domain, first.verifier) == ("Half of 1?", r"\frac12", "math", "math")
    assert (second.answer, second.domain, second.verifier) == ("4", "sums", "integer")
    assert third.text == "Be brief.\n\nGröße?"
    assert TOKENIZER.decode(third.token_ids) == "Be brief.Größe?<|assistant|>"


def test_an_answer_may_be_an_object(write: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "answer": {"target": number, "numbers": [1, 2]}} for number in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    for source in (load(write(*rows)), load(str(tmp_path / "train.parquet"))):
        answers = {prompt.text: prompt.answer for prompt in (*source.training, *source.held_out)}
        assert answers["1?"] == '{"numbers": [1, 2], "target": 1}'


def test_the_instruction_ends_the_last_message(write: Write) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 2?"}]
    path = write({"prompt": "Half of 1?", "answer": "x"}, {"prompt": chat, "answer": "3"})
    source = load(path, instruction="Use a box.")
    texts = {prompt.text for prompt in (*source.training, *source.held_out)}
    assert texts == {"Half of 1?\nUse a box.", "Be brief.\n\n1 + 2?\nUse a box."}


def test_parquet_gives_the_same_prompts(write: Write, tmp_path: Path) -> None:
    rows = questions(*range(30))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    sources = load(write(*rows)), load(str(tmp_path / "train.parquet"))
    texts = [[(prompt.text, prompt.answer) for prompt in source.training] for source in sources]
    assert texts[0] == texts[1]
    assert sources[1].training[0].id.startswith("train.parquet:")


def test_parquet_conversations_and_missing_optional_values(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"{number}?"}], "answer": "1", "domain": None, "verifier": None}
        for number in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    source = load(str(tmp_path / "train.parquet"), domain="algebra", verifier="integer")
    assert (source.training[0].domain, source.training[0].verifier) == ("algebra", "integer")


def test_eval_path_is_held_out_and_never_trained_on(write: Write) -> None:
    held_out = write(*questions(1, 2), name="test.jsonl")
    source = load(write(*questions(*range(6))), eval_path=held_out)
    assert [prompt.id for prompt in source.held_out] == ["test.jsonl:1", "test.jsonl:2"]
    assert [prompt.answer for prompt in source.training] == ["0", "3", "4", "5"]


def test_eval_path_with_every_training_prompt(write: Write) -> None:
    path = write(*questions(1, 2))
    with pytest.raises(DataError, match=r"data\.path=.* every prompt is also in data\.eval_path="):
        load(path, eval_path=path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "answer": ', r"train.jsonl:3: each line must be one JSON object: "),
        ("", r"train.jsonl:3: empty row"),
        ("{}", r"train.jsonl:3: empty row"),
        ([1, 2], r"train.jsonl:3: expected an object with prompt and answer, found list"),
        ({"prompt": "a"}, r"train.jsonl:3: no column 'answer', only 'prompt'"),
        ({"question": "a", "answer": "1"}, r"train.jsonl:3: no column 'prompt', only 'question', 'answer'"),
        ({"prompt": "a", "answer": 4.5}, r"train.jsonl:3: answer must be a string, found float 4.5"),
        ({"prompt": "a", "answer": {"a": float("nan")}}, r"train.jsonl:3: answer is no JSON: "),
        ({"prompt": "a", "answer": None}, r"train.jsonl:3: answer must be a string, found NoneType"),
        ({"prompt": "a", "answer": " "}, r"train.jsonl:3: answer is empty"),
        ({"prompt": " \n", "answer": "1"}, r"train.jsonl:3: prompt is empty"),
        ({"prompt": [], "answer": "1"}, r"train.jsonl:3: prompt is an empty list"),
        ({"prompt": ["a"], "answer": "1"}, r"train.jsonl:3: prompt must be a string or a list of messages"),
        ({"prompt": [{"role": "user"}], "answer": "1"}, r"train.jsonl:3: prompt must be a string or a list"),
        (
            {"prompt": [{"role": "user", "content": ""}], "answer": "1"},
            r"train.jsonl:3: prompt, message 1, content is empty",
        ),
        ({"prompt": "a", "answer": "1", "domain": 3}, r"train.jsonl:3: domain must be a string, found int 3"),
        (
            {"prompt": "a", "answer": "1", "verifier": "code"},
            r"train.jsonl:3: verifier='code': must be one of integer, math, or an entry of reward.verifiers$",
        ),
        (
            {"prompt": "a", "answer": "1", "verifier": "maths"},
            r"train.jsonl:3: verifier='maths': must be one of .*; did you mean math\?$",
        ),
        (
            {"prompt": "a" * 64, "answer": "1"},
            r"train.jsonl:3: the prompt has 65 tokens, more than rollout.max_prompt_tokens=64",
        ),
    ],
)
def test_a_bad_row_is_named(write: Write, line: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(*questions(1, 2), line, *questions(4)))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"prompt": "a", "answer": "1"}\n{"prompt": "\xff", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"train.jsonl:2: .*utf-8"):
        load(str(tmp_path / "train.jsonl"))


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": ["1", None]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet:2: answer must be a string"):
        load(str(tmp_path / "train.parquet"))


def test_bad_files(write: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in [
        (str(tmp_path / "none.jsonl"), r"data\.path=.*none.jsonl': no such file"),
        (str(tmp_path / "empty"), r"data\.path=.*empty': no file in it ends in \.jsonl, \.json, \.parquet"),
        (write(name="empty.jsonl"), r"data\.path=.*empty.jsonl': the file has no rows"),
        (write("a,b", name="train.csv"), r"data\.path=.*train.csv': must end in \.jsonl, \.json, \.parquet"),
        (write("text", name="text.parquet"), r"text.parquet: not a readable Parquet file"),
        (write(*questions(1, 1)), r"data\.path: 1 distinct prompts, need at least 2"),
    ]:
        with pytest.raises(DataError, match=message):
            load(path)
    with pytest.raises(DataError, match=r"data\.eval_path=.*none.jsonl': no such file"):
        load(write(*questions(1, 2)), eval_path=str(tmp_path / "none.jsonl"))
