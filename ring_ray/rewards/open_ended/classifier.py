"""A sequence classifier of transformers as a reward model, batched."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from ring_ray.config import ConfigError, RewardModelConfig, require
from ring_ray.rewards.base import failed
from ring_ray.types import Reward

Conversation = list[dict[str, str]]  # messages with role and content


def check_classifier(config: RewardModelConfig) -> None:
    """Raise `ConfigError` where the model at ``config.path`` is no classifier with one label. Reads no weights."""
    assert config.path is not None
    try:
        found = AutoConfig.from_pretrained(config.path, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # a damaged file may fail anywhere
        raise ConfigError(
            f"reward.model.path={config.path!r}: no config.json that transformers can read: {error}"
        ) from error
    architectures = found.architectures or []
    require(
        found.num_labels == 1 and any(name.endswith("ForSequenceClassification") for name in architectures),
        "reward.model.path",
        config.path,
        f"must be a sequence classifier with one label, not {found.num_labels} of {', '.join(architectures)}",
    )


class SequenceClassifier:
    """A decoder with a linear head on the last token.

    transformers finds that token by the id of the padding, and takes the wrong one where that is the token that ends
    texts. Here it is found by the length, and the head is asked about it alone.
    """

    def __init__(self, config: RewardModelConfig) -> None:
        """Load the model at ``config.path``, onto the GPU that this process has, if it has one.

        Raises `ConfigError` where the head is not in the weights, or the model is no decoder.
        """
        path, trust_remote_code = config.path, config.trust_remote_code
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=getattr(torch, config.dtype), trust_remote_code=trust_remote_code, output_loading_info=True
        )
        missing = ", ".join(sorted(loaded["missing_keys"]))
        require(not missing, "reward.model.path", path, f"its weights lack {missing}, which would be random")
        require(
            isinstance(getattr(model, "score", None), torch.nn.Linear),
            "reward.model.path",
            path,
            f"{type(model).__name__} is no decoder with a linear head: serve it, for reward.model.url",
        )
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        require(
            self._tokenizer.chat_template is not None, "reward.model.path", path, "its tokenizer has no chat template"
        )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: PreTrainedModel = model.eval().to(self._device)
        self._batch_tokens = config.batch_tokens
        self._context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def scores(self, conversations: Sequence[Conversation]) -> Sequence[float | Reward]:
        """The raw score of each conversation; FAILED for one that is longer than the model's context."""
        ids = [self._tokenizer.apply_chat_template(conversation, return_dict=False) for conversation in conversations]
        found: list[float | Reward] = [
            failed(f"the reward model's context has {self._context} tokens, question and response {len(row)}")
            for row in ids
        ]
        fitting = [index for index, row in enumerate(ids) if self._context is None or len(row) <= self._context]
        for batch in batches(sorted(fitting, key=lambda index: len(ids[index])), ids, self._batch_tokens):
            raw_B = self._forward([ids[index] for index in batch])
            for index, raw in zip(batch, raw_B.tolist(), strict=True):
                found[index] = raw
        return found

    @torch.no_grad()
    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores, [B], of token ids of any lengths."""
        lengths_B = torch.tensor([len(row) for row in rows])
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B.unsqueeze(1)
        outputs = self._model.base_model(
            input_ids=ids_BT.to(self._device), attention_mask=mask_BT.long().to(self._device), use_cache=False
        )
        last_BH = outputs.last_hidden_state[torch.arange(len(rows)), lengths_B - 1]
        scores: Tensor = self._model.score(last_BH).squeeze(-1).float()
        return scores


def batches(indices: Sequence[int], rows: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """``indices`` in their order, which is by the lengths of their ``rows``, in lists of at most ``tokens``, padded."""
    batch: list[int] = []
    for index in indices:
        if batch and (len(batch) + 1) * len(rows[index]) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
