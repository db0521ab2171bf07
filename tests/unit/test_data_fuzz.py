"""Whatever a data file holds: it loads, or the one error says which file, which row and which field."""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.config import DataConfig, RolloutConfig, RunConfig
from ring_ray.data.rows import DataError
from ring_ray.data.source import load_prompts
from ring_ray.engines.tiny_model import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
GOOD = [json.dumps({"prompt": f"What is {number}?", "answer": str(number)}).encode() for number in (1, 2)]
LIMIT = 300  # characters of a message that people still read

TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(["", " \n", "\ud800", "\0", "\u2028", "x" * 10**5])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": LEAVES, "content": LEAVES}) | VALUES, max_size=3)
FIELDS = {"prompt": VALUES | MESSAGES, "answer": VALUES}
RECORDS = st.fixed_dictionaries(FIELDS, optional={"domain": LEAVES, "verifier": LEAVES}) | VALUES
LINES = RECORDS.map(lambda record: json.dumps(record).encode())
PLACE = re.compile(r"rows\.(jsonl|parquet):\d+: |data\.path: \d distinct prompts")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def loads_or_is_refused(file: Path) -> str:
    """The refusal; nothing where the prompts loaded, each with text and tokens."""
    data = DataConfig(source="jsonl", path=str(file))
    try:
        source = load_prompts(RunConfig(data=data, rollout=RolloutConfig(max_prompt_tokens=64)), TOKENIZER, ("math",))
    except DataError as error:
        return str(error)
    prompts = [*source.training, *source.held_out]
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.text.strip()
        assert prompt.answer.strip()
        assert 0 < len(prompt.token_ids) <= 64
    return ""


@settings(max_examples=200, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=3), end=st.sampled_from([b"\n", b"\r\n"]), mark=st.booleans())
def test_rows_of_any_values(directory: Path, lines: list[bytes], end: bytes, mark: bool) -> None:
    file = directory / "rows.jsonl"
    file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + end.join([*GOOD, *lines]))
    refusal = loads_or_is_refused(file)
    assert not refusal or PLACE.match(refusal)
    assert len(refusal) < LIMIT


@settings(max_examples=200, deadline=None)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3)), min_size=1, max_size=3),
    cut=st.sampled_from([0, 1, 20]),
)
def test_bytes_that_are_damaged(directory: Path, damage: list[tuple[float, bytes]], cut: int) -> None:
    file, content = directory / "rows.jsonl", bytearray(b"\n".join([*GOOD, *GOOD]))
    for share, replacement in damage:
        start = int(share * len(content))
        content[start : start + cut] = replacement
    file.write_bytes(content)
    refusal = loads_or_is_refused(file)
    assert not refusal or PLACE.match(refusal)


def columns() -> Iterator[pa.Array]:
    """Of every type that Arrow has for two rows, the values at the edge of what Python can hold."""
    not_utf8 = [None, pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes()), pa.py_buffer(b"\xff\xfe")]
    yield pa.Array.from_buffers(pa.string(), 2, not_utf8)
    yield from (pa.array(["a", "b"], type) for type in (pa.string(), pa.large_string(), pa.string_view()))
    yield pa.array(["a", "b"]).dictionary_encode()
    yield from (pa.array([2**62] * 2, type) for type in (pa.int64(), pa.uint64(), pa.timestamp("ns"), pa.duration("s")))
    yield pa.array([1, 2], pa.timestamp("ns", tz="No/Where"))
    yield from (pa.array([2**30] * 2, type) for type in (pa.date32(), pa.time64("ns")))
    yield pa.array([2**60] * 2, pa.date64())
    yield from (pa.array(values) for values in ([np.nan, 1.0], [True, False], [b"\xff", b""], [None, None]))
    yield pa.array([Decimal("1.5"), Decimal(2)])
    yield from (pa.array([value] * 2) for value in (["a"], {"role": "user"}, [{"role": "user", "content": "?"}], []))
    yield pa.array([[("role", "user")]] * 2, pa.map_(pa.string(), pa.string()))


COLUMNS = [*columns()]


@pytest.mark.parametrize("column", ["prompt", "answer", "domain", "verifier", "other"])
@pytest.mark.parametrize("values", COLUMNS, ids=lambda values: str(values.type))
def test_columns_of_any_type(tmp_path: Path, column: str, values: pa.Array) -> None:
    file = tmp_path / "rows.parquet"
    table = {"prompt": pa.array(["What is 1?", "What is 2?"]), "answer": pa.array(["1", "2"])}
    pq.write_table(pa.table(table | {column: values}), file)
    refusal = loads_or_is_refused(file)
    assert not refusal or re.match(rf"rows\.parquet:\d: {column}\b|data\.path: 1 distinct prompts", refusal)
    assert len(refusal) < LIMIT


@settings(max_examples=100, deadline=None)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    length=st.floats(0, 1) | st.just(1.0),
)
def test_a_damaged_parquet_file(directory: Path, damage: list[tuple[float, int]], length: float) -> None:
    file = directory / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["What is 1?", "What is 2?"], "answer": ["1", "2"]}), file)
    content = bytearray(file.read_bytes())
    for share, value in damage:
        content[int(share * len(content))] = value
    file.write_bytes(content[: int(length * len(content))])
    refusal = loads_or_is_refused(file)
    assert not refusal or "rows.parquet" in refusal or "data.path" in refusal


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 10**5, r"rows\.jsonl:3: each line must be one JSON object"),
        (rb'{"prompt": "\ud800", "answer": "1"}', r"rows\.jsonl:3: prompt is no text: .*surrogates"),
        (rb'{"prompt": "?", "answer": "\udfff"}', r"rows\.jsonl:3: answer is no text"),
        (rb'{"prompt": "?", "answer": "1", "domain": []}', r"rows\.jsonl:3: domain must be a string, found list \[\]"),
        (rb'{"prompt": "?", "answer": "1", "verifier": 0}', r"rows\.jsonl:3: verifier must be a string, found int 0"),
        (rb'{"prompt": "?", "answer": NaN}', r"rows\.jsonl:3: answer must be a string, found float nan"),
        (rb'{"prompt": "?", "answer": "1"}' + b"\r" + GOOD[0], r"rows\.jsonl:3: .*Extra data"),
        (b'{"prompt": "?", "answer": ' + b"9" * 5000 + b"}", r"rows\.jsonl:3: .*Exceeds the limit"),
        (
            b'{"prompt": ["' + b"x" * 10**6 + b'"], "answer": "1"}',
            r"rows\.jsonl:3: prompt must be .*, found 'xxx.{,40}$",
        ),
    ],
)
def test_what_the_fuzzer_found(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*GOOD, line]))
    assert re.match(message, loads_or_is_refused(file))


def test_a_path_that_is_no_name(tmp_path: Path) -> None:
    assert re.match(r"data\.path=.*: no such file", loads_or_is_refused(tmp_path / ("x" * 5000 + ".jsonl")))


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages + 1 }}", "{{ messages[0].role ** 'x' }}", "{% for %}"]
)
def test_a_template_that_fails_is_named_with_the_row(tmp_path: Path, template: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(GOOD))
    failing = make_tiny_tokenizer()
    failing.chat_template = template
    with pytest.raises(DataError, match=r"rows\.jsonl:\d: the tokenizer's chat template refuses the prompt"):
        load_prompts(RunConfig(data=DataConfig(source="jsonl", path=str(file))), failing, ("math",))


def test_a_template_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(GOOD))
    empty = make_tiny_tokenizer()
    empty.chat_template = "{{ '' }}"
    with pytest.raises(DataError, match=r"rows\.jsonl:\d: the prompt has no tokens"):
        load_prompts(RunConfig(data=DataConfig(source="jsonl", path=str(file))), empty, ("math",))
