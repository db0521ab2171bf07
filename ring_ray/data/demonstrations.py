"""Scratch-pad demonstrations of sums: what the cold start learns from before reinforcement learning has a signal."""

import re
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from ring_ray.data.rows import DataError
from ring_ray.data.source import PromptSource
from ring_ray.data.tokenizer import Tokenizer
from ring_ray.types import IntArray, Prompt

_SUM = re.compile(r"Calculate (\d+) \+ (\d+)\.")


def demonstrations(source: PromptSource, tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Prompt, IntArray]]:
    """Training prompts, each with the ids [T] of a worked response that ends in the eos token; endless.

    Leaves the cursor of ``source`` where it is. Raises `DataError` at a prompt that is not a sum.
    """
    own = PromptSource(source.training, source.held_out, seed)
    while True:
        prompt = own.next()
        ids = tokenizer(demonstrate(prompt), add_special_tokens=False)["input_ids"]
        yield prompt, np.array([*ids, tokenizer.eos_token_id], np.int32)


def demonstrate(prompt: Prompt) -> str:
    """Column addition from the last digit on, carries named: ``7+5=12 4+6+1=11 \\boxed{112}`` for 47 + 65."""
    operands = _SUM.fullmatch(prompt.text)
    if operands is None:
        raise DataError(f"{prompt.id}: no demonstration for {prompt.text!r}, only for sums: set sft.enabled=never")
    steps, carry = [], 0
    for first, second in zip_longest(operands[1][::-1], operands[2][::-1], fillvalue="0"):
        total = int(first) + int(second) + carry
        steps.append(f"{first}+{second}+{carry}={total}" if carry else f"{first}+{second}={total}")
        carry = total // 10
    return f"{' '.join(steps)} \\boxed{{{int(operands[1]) + int(operands[2])}}}"
