"""The stream of training prompts, and the prompts that are held out of it.

::

    sums | file --Row--> distinct by text --split by hash--> held out (never trained on)
                                             '--> training --> shuffled each epoch --> next(), index 0, 1, 2, ...
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TypedDict

import numpy as np

from ring_ray.config import RunConfig
from ring_ray.data.files import read_rows
from ring_ray.data.rows import DataError, Row
from ring_ray.data.sums import generate_sums
from ring_ray.data.tokenizer import Tokenizer, render
from ring_ray.types import Prompt


class Cursor(TypedDict):
    """Where a `PromptSource` stands. Small and plain, for checkpoints."""

    epoch: int
    position: int  # prompts of this epoch that were issued
    issued: int  # prompts of the whole run that were issued
    digest: str  # of the training prompts and the seed


class PromptSource:
    """Endless training prompts: each epoch holds every prompt once, in an order of its own that the seed decides."""

    def __init__(self, training: Iterable[Prompt], held_out: Iterable[Prompt], seed: int) -> None:
        self.training, self.held_out = tuple(training), tuple(held_out)
        self._seed, self._issued = seed, 0
        self._digest = _digest(self.training, seed)
        self._order = self._shuffle(epoch=0)

    def __len__(self) -> int:
        """Distinct training prompts: one epoch."""
        return len(self.training)

    def next(self) -> Prompt:
        """The next prompt; its index counts the prompts issued before it."""
        epoch, position = divmod(self._issued, len(self))
        if position == 0:
            self._order = self._shuffle(epoch)
        prompt = replace(self.training[self._order[position]], index=self._issued)
        self._issued += 1
        return prompt

    def state(self) -> Cursor:
        epoch, position = divmod(self._issued, len(self))
        return {"epoch": epoch, "position": position, "issued": self._issued, "digest": self._digest}

    def restore(self, cursor: Cursor) -> None:
        """Go on from ``cursor``; raises `DataError` where it was taken from other prompts or with another seed."""
        if cursor["digest"] != self._digest:
            raise DataError(
                f"the cursor was not taken from these {len(self)} training prompts: the data, the tokenizer or "
                f"seed={self._seed} has changed"
            )
        self._issued = cursor["issued"]
        self._order = self._shuffle(cursor["epoch"])

    def _shuffle(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self._seed, epoch]).permutation(len(self)).tolist()
        return order


def load_prompts(config: RunConfig, tokenizer: Tokenizer, verifiers: Collection[str]) -> PromptSource:
    """The prompts of ``config.data``, every one checked, rendered and tokenized; raises `DataError`.

    Of rows with the same prompt text the first counts. ``verifiers`` are the names that a row may use.
    """
    data = config.data
    if data.source == "sums":
        training, held_out = split(_distinct(generate_sums(data, config.seed)), data.eval_fraction, "data.size")
    else:
        assert data.path is not None  # DataConfig refuses jsonl without one
        training = _distinct(read_rows(data.path, "data.path", data, verifiers))
        if data.eval_path is None:
            training, held_out = split(training, data.eval_fraction, "data.path")
        else:
            held_out = _distinct(read_rows(data.eval_path, "data.eval_path", data, verifiers))
            held_out_texts = {row.text for row in held_out}
            training = [row for row in training if row.text not in held_out_texts]
            if not training:
                raise DataError(f"data.path={data.path!r}: every prompt is also in data.eval_path={data.eval_path!r}")

    def prompts(rows: list[Row]) -> list[Prompt]:
        return [_prompt(index, row, tokenizer, config.rollout.max_prompt_tokens) for index, row in enumerate(rows)]

    return PromptSource(prompts(training), prompts(held_out), config.seed)


def split(rows: list[Row], held_out_fraction: float, key: str) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows, at least one of each. ``key`` is the setting to blame for too few rows.

    A row's side depends on its text and on nothing else, so a prompt that one run holds out no other run of the same
    fraction trains on, whatever its seed. Only where a side would be empty does it get the row nearest to it.
    """
    if len(rows) < 2:
        raise DataError(f"{key}: {len(rows)} distinct prompts, need at least 2: one to train on and one to hold out")
    ranked = sorted(rows, key=lambda row: _uniform_hash(row.text))
    count = sum(_uniform_hash(row.text) < held_out_fraction for row in ranked)
    held_out = {row.text for row in ranked[: min(max(count, 1), len(rows) - 1)]}
    return [row for row in rows if row.text not in held_out], [row for row in rows if row.text in held_out]


def _digest(prompts: Iterable[Prompt], seed: int) -> str:
    """Tells the same prompts in the same order from any others."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=16)
    for prompt in prompts:
        digest.update(repr((prompt.id, prompt.domain, prompt.text, prompt.verifier, prompt.answer)).encode())
        digest.update(prompt.token_ids.tobytes())
    return digest.hexdigest()


def _uniform_hash(text: str) -> float:
    """A number in [0, 1) that is the same in every process."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _distinct(rows: list[Row]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.text, row)
    return list(first.values())


def _prompt(index: int, row: Row, tokenizer: Tokenizer, max_prompt_tokens: int) -> Prompt:
    return Prompt(
        index=index,
        id=row.id,
        domain=row.domain,
        text=row.text,
        token_ids=render(row, tokenizer, max_prompt_tokens),
        verifier=row.verifier,
        answer=row.answer,
    )
