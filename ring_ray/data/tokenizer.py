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
    except Exception as error:  # that is what the tokenizers library raises for a damaged file
        raise DataError(f"{missing}: {error}") from error
    # Where only config.json is there, transformers makes an empty tokenizer of the model's class and says nothing.
    if len(tokenizer) == len(tokenizer.all_special_ids):
        raise DataError(f"{missing}: it needs tokenizer.json or a vocabulary file")
    if tokenizer.eos_token_id is None:
        raise DataError(f"model.path={path!r}: the tokenizer has no eos token, so no response could ever end")
    return tokenizer


def decode(tokenizer: Tokenizer, ids: IntArray) -> str:
    """The text of a response [T] without its special tokens.

    A model may sample an id that no token has, where its embedding is padded to a round size. It becomes U+FFFD: were
    it left out, what stands around it would pass for one word, or one number.
    """
    spans: list[list[int]] = [[]]
    for token_id, token in zip(ids.tolist(), tokenizer.convert_ids_to_tokens(ids.tolist()), strict=True):
        if token is None:
            spans.append([])
        else:
            spans[-1].append(token_id)
    return "\ufffd".join(tokenizer.batch_decode(spans, skip_special_tokens=True))


def render(row: Row, tokenizer: Tokenizer, max_prompt_tokens: int) -> IntArray:
    """The row's token ids [P], through the chat template where the tokenizer has one, else as plain text.

    Raises `DataError` where the template refuses the messages, or the prompt is empty or too long.
    """
    if tokenizer.chat_template is None:
        ids = tokenizer(row.text)["input_ids"]
    else:
        try:
            ids = tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, return_dict=False)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{row.id}: the tokenizer's chat template refuses the prompt: {error}") from error
    if len(ids) == 0:
        raise DataError(f"{row.id}: the prompt has no tokens: the tokenizer or its chat template leaves none")
    if len(ids) > max_prompt_tokens:
        raise DataError(
            f"{row.id}: the prompt has {len(ids)} tokens, more than rollout.max_prompt_tokens={max_prompt_tokens}"
        )
    return np.array(ids, np.int32)
