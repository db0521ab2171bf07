"""Tokenizers and chat templates."""

from typing import TypeAlias

import jinja2
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ring_ray.config import ModelConfig
from ring_ray.data.rows import DataError, Row
from ring_ray.types import IntArray

Tokenizer: TypeAlias = PreTrainedTokenizerBase


def load_tokenizer(path: str, model: ModelConfig) -> Tokenizer:
    """The tokenizer of a model directory or hub name; raises `DataError` where there is none."""
    missing = f"model.path={path!r}: no tokenizer that transformers can load"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"{missing}: {error}") from error
    # Where only config.json is there, transformers makes an empty tokenizer of the model's class and says nothing.
    if len(tokenizer) == len(tokenizer.all_special_ids):
        raise DataError(f"{missing}: it needs tokenizer.json or a vocabulary file")
    if tokenizer.eos_token_id is None:
        raise DataError(f"model.path={path!r}: the tokenizer has no eos token, so no response could ever end")
    return tokenizer


def render(row: Row, tokenizer: Tokenizer, max_prompt_tokens: int) -> IntArray:
    """The row's token ids [P], through the chat template where the tokenizer has one, else as plain text.

    Raises `DataError` where the template refuses the messages or the prompt is too long.
    """
    if tokenizer.chat_template is None:
        ids = tokenizer(row.text)["input_ids"]
    else:
        try:
            ids = tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, return_dict=False)
        except jinja2.TemplateError as error:
            raise DataError(f"{row.id}: the tokenizer's chat template refuses the prompt: {error}") from error
    if len(ids) > max_prompt_tokens:
        raise DataError(
            f"{row.id}: the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens={max_prompt_tokens}"
        )
    return np.array(ids, np.int32)
