"""One row of data, before it is rendered and tokenized."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import TypeAlias

from ring_ray.config import DataConfig, did_you_mean

Message: TypeAlias = dict[str, str]  # role, content


class DataError(ValueError):
    """Data that the run can't work with. The message names the file and line, or the key, and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    id: str  # also where it stands: "train.jsonl:17"
    domain: str
    messages: tuple[Message, ...]
    verifier: str
    answer: str
    demonstration: str = ""  # a worked response, where the data has one

    @property
    def text(self) -> str:
        """What the user asked, before the chat template."""
        return "\n\n".join(message["content"] for message in self.messages)


def parse_row(record: object, where: str, data: DataConfig, verifiers: Collection[str]) -> Row:
    """Check one record of a file. ``where`` is its file and line; raises `DataError` that begins with it."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with prompt and answer, found {type(record).__name__}")
    if not record:
        raise DataError(f"{where}: empty row")
    for column in ("prompt", "answer"):
        if column not in record:
            raise DataError(f"{where}: no column {column!r}, only {shortened([*record])[1:-1]}")
    answer = record["answer"]
    if isinstance(answer, dict | list):  # what a verifier needs beyond one text
        answer = _json(answer, f"{where}: answer")
    elif type(answer) is int:  # unlike a float or a bool it has only one way to be written
        answer = str(answer)
    verifier = _text(_given(record, "verifier", data.verifier), f"{where}: verifier")
    if verifier not in verifiers:
        known = f"must be one of {', '.join(sorted(verifiers))}, or an entry of reward.verifiers"
        raise DataError(f"{where}: verifier={shortened(verifier)}: {known}{did_you_mean(verifier, verifiers)}")
    demonstration = _given(record, "demonstration", "")
    return Row(
        id=where,
        domain=_text(_given(record, "domain", data.domain), f"{where}: domain"),
        messages=_instructed(_messages(record["prompt"], f"{where}: prompt"), data.instruction),
        verifier=verifier,
        answer=_text(answer, f"{where}: answer"),
        demonstration="" if demonstration == "" else _text(demonstration, f"{where}: demonstration"),
    )


def _instructed(messages: tuple[Message, ...], instruction: str) -> tuple[Message, ...]:
    """The conversation with ``instruction`` at the end of its last message."""
    if not instruction:
        return messages
    *before, last = messages
    return (*before, last | {"content": f"{last['content']}\n{instruction}"})


def _messages(prompt: object, what: str) -> tuple[Message, ...]:
    """A question, or a conversation that ends with one, as chat messages."""
    if not isinstance(prompt, list):
        return ({"role": "user", "content": _text(prompt, what)},)
    if not prompt:
        raise DataError(f"{what} is an empty list")
    for message in prompt:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(
                f"{what} must be a string or a list of messages with role and content, found {shortened(message)}"
            )
    return tuple(
        {key: _text(message[key], f"{what}, message {number}, {key}") for key in ("role", "content")}
        for number, message in enumerate(prompt, start=1)
    )


def _json(value: object, what: str) -> str:
    """The same text for equal values."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:  # such as a date in Parquet, or NaN
        raise DataError(f"{what} is no JSON: {shortened(str(error))}") from error


def _given(record: dict[str, object], column: str, default: str) -> object:
    value = record.get(column)
    return default if value is None or value == "" else value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} must be a string, found {type(value).__name__} {shortened(value)}")
    if not value.strip():
        raise DataError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is no text: {error}") from error
    return value
