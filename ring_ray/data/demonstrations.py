"""Demonstrations: what the cold start learns from before reinforcement learning has a signal."""

from collections.abc import Iterator

import numpy as np

from ring_ray.data.source import PromptSource
from ring_ray.data.tokenizer import Tokenizer
from ring_ray.types import IntArray, Prompt


def demonstrations(source: PromptSource, tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Prompt, IntArray]]:
    """Training prompts that have a demonstration, each with its ids [T] and the eos token at their end; endless.

    Leaves the cursor of ``source`` where it is. Raises ValueError where no prompt has one.
    """
    shown = [prompt for prompt in source.training if prompt.id in source.demonstrations]
    if not shown:
        raise ValueError("no training prompt has a demonstration")
    own = PromptSource(shown, source.held_out, seed)
    while True:
        prompt = own.next()
        ids = tokenizer(source.demonstrations[prompt.id], add_special_tokens=False)["input_ids"]
        yield prompt, np.array([*ids, tokenizer.eos_token_id], np.int32)
