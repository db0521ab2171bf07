"""The stream of training prompts, and the prompts that are held out of it.

::

    sums | files --Row--> distinct by text --split by hash--> held out (never trained on)
                                              '--> training --> in shuffled epochs --> next(), index 0, 1, 2, ...
                                                                by domain where there are weights
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from typing import TypedDict

from ring_ray.config import RunConfig, did_you_mean
from ring_ray.data.files import read_rows
from ring_ray.data.mixture import Mixture
from ring_ray.data.rows import DataError, Row
from ring_ray.data.sums import generate_sums
from ring_ray.data.tokenizer import Tokenizer, render
from ring_ray.types import Prompt


class Cursor(TypedDict):
    """Where a `PromptSource` stands. Small and plain, for checkpoints."""

    issued: int  # prompts of the whole run that were issued
    domains: dict[str, int]  # the same by domain
    digest: str  # of the training prompts and the seed


class PromptSource:
    """Endless training prompts, in an order that the seed decides.

    Without ``weights`` each epoch holds every prompt once. With them each domain has epochs of its own, and of the
    prompts each domain gets its share: after any number of them, but for a few. A domain of weight 0 is left out.
    """

    def __init__(
        self,
        training: Iterable[Prompt],
        held_out: Iterable[Prompt],
        seed: int,
        weights: Mapping[str, float] | None = None,
        demonstrations: Mapping[str, str] | None = None,
    ) -> None:
        """``demonstrations`` are worked responses by the ids of their prompts; not all need one."""
        self.training, self.held_out = tuple(training), tuple(held_out)
        self.demonstrations = demonstrations or {}
        self._seed, self._digest = seed, _digest(self.training, seed)
        domains = defaultdict[str, list[int]](list)
        for place, prompt in enumerate(self.training):
            domains[prompt.domain].append(place)
        self._mixture = Mixture(domains, weights or {}, seed)
        self._issued = dict.fromkeys(domains, 0)

    def __len__(self) -> int:
        """Distinct training prompts that are issued sooner or later."""
        return len(self._mixture)

    def next(self) -> Prompt:
        """The next prompt; its index counts the prompts issued before it."""
        index = sum(self._issued.values())
        prompt = replace(self.training[self._mixture.place(index, self._issued)], index=index)
        self._issued[prompt.domain] += 1
        return prompt

    def state(self) -> Cursor:
        return {"issued": sum(self._issued.values()), "domains": {**self._issued}, "digest": self._digest}

    def restore(self, cursor: Cursor) -> None:
        """Go on from ``cursor``, which may have been taken with other weights.

        Raises `DataError` where it was taken from other prompts or with another seed.
        """
        if cursor["digest"] != self._digest:
            raise DataError(
                f"the cursor was not taken from these {len(self.training)} training prompts: the data, the tokenizer "
                f"or seed={self._seed} has changed"
            )
        self._issued = {**cursor["domains"]}


def load_prompts(config: RunConfig, tokenizer: Tokenizer, verifiers: Collection[str]) -> PromptSource:
    """The prompts of ``config.data``, every one checked, rendered and tokenized; raises `DataError`.

    Of rows with the same prompt text the first counts. ``verifiers`` are the names that a row may use. Among the
    held-out prompts domains take turns, so that the first so many are of all of them.
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
    _check_weights(data.weights, training)

    def prompts(rows: Iterable[Row]) -> list[Prompt]:
        return [_prompt(index, row, tokenizer, config.rollout.max_prompt_tokens) for index, row in enumerate(rows)]

    shown = {row.id: row.demonstration for row in training if row.demonstration}
    return PromptSource(prompts(training), prompts(_in_turns(held_out)), config.seed, data.weights, shown)


def _check_weights(weights: Mapping[str, float], training: Sequence[Row]) -> None:
    """Every domain has a weight, and every weight a domain; or there are none."""
    examples = {row.domain: row.id for row in reversed(training)}
    for domain in weights:
        if domain not in examples:
            hint = did_you_mean(domain, examples)
            raise DataError(f"data.weights.{domain}: no training prompt has this domain{hint or _listed(examples)}")
    for domain, example in examples.items():
        if weights and domain not in weights:
            raise DataError(f"data.weights.{domain}: {example} has this domain: give it a weight, or 0 to leave it out")


def _listed(domains: Iterable[str]) -> str:
    return f", only {', '.join(sorted(domains))}"


def _in_turns(rows: Iterable[Row]) -> list[Row]:
    """A row of each domain, then the next of each."""
    turns = zip_longest(*_by_domain(rows).values())
    return [row for row in chain.from_iterable(turns) if row is not None]


def split(rows: list[Row], held_out_fraction: float, key: str) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows, at least one of each in every domain of two or more. ``key`` is to blame for too few.

    A row's side depends on its text and on nothing else, so a prompt that one run holds out no other run of the same
    fraction trains on, whatever its seed. Only where a side would be empty does it get the row nearest to it.
    """
    if len(rows) < 2:
        raise DataError(f"{key}: {len(rows)} distinct prompts, need at least 2: one to train on and one to hold out")
    chosen = [_held_out(domain, held_out_fraction) for domain in _by_domain(rows).values()]
    held_out = {
        row.text for row in chain.from_iterable(chosen if any(chosen) else [_held_out(rows, held_out_fraction)])
    }
    return [row for row in rows if row.text not in held_out], [row for row in rows if row.text in held_out]


def _held_out(rows: Sequence[Row], fraction: float) -> list[Row]:
    """None of a single row."""
    ranked = sorted(rows, key=lambda row: _uniform_hash(row.text))
    count = sum(_uniform_hash(row.text) < fraction for row in ranked)
    return ranked[: min(max(count, 1), len(rows) - 1)]


def _by_domain(rows: Iterable[Row]) -> dict[str, list[Row]]:
    domains = defaultdict[str, list[Row]](list)
    for row in rows:
        domains[row.domain].append(row)
    return domains


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
