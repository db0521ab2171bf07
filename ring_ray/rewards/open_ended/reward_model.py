"""A general reward model: what a sequence classifier with one label thinks of a question and an answer to it."""

import math
from collections.abc import Sequence

import msgspec

from ring_ray.config import LengthConfig, RewardModelConfig, require
from ring_ray.rewards.base import failed
from ring_ray.rewards.open_ended.classifier import SequenceClassifier, check_classifier
from ring_ray.rewards.open_ended.endpoint import Body, Endpoint, UnreadableAnswerError
from ring_ray.rewards.open_ended.verifier import OpenEndedVerifier, Opinion
from ring_ray.types import Prompt, Reward


def opinion(raw: float, config: RewardModelConfig) -> Opinion | Reward:
    """sigmoid((raw - center) / scale): of any range, it becomes one that mixes with rewards of 0 and 1."""
    if not math.isfinite(raw):
        return failed(f"the reward model's score is {raw}")
    score = 0.5 + 0.5 * math.tanh(0.5 * (raw - config.center) / config.scale)  # the sigmoid, without its overflow
    return Opinion(score, f"the reward model says {raw:.4g}, which is {score:.3g}")


class _Item(msgspec.Struct):
    probs: list[float] = []  # /classify calls it so, with the activation off as well
    data: list[float] = []  # of /pooling


class _Items(msgspec.Struct):
    data: list[_Item]


def read_raw_score(answer: object) -> float:
    """The one number in the answer of vLLM's /classify or /pooling; raises `UnreadableAnswerError`."""
    try:
        (item,) = msgspec.convert(answer, _Items).data
        (raw,) = item.probs or item.data
    except (msgspec.ValidationError, ValueError) as error:
        raise UnreadableAnswerError(f"not the one score of a classifier with one label: {error}") from error
    if not math.isfinite(raw):
        raise UnreadableAnswerError(f"the reward model's score is {raw}")
    return raw


class ServedRewardModel(OpenEndedVerifier):
    """Behind a server with vLLM's pooling runner, which applies the chat template and batches."""

    def __init__(self, config: RewardModelConfig, length: LengthConfig) -> None:
        """Raises `ConfigError` where the config names no server."""
        super().__init__(config, length)
        where = "must be the address of a server; or reward.model.path a model's directory"
        require(config.url is not None, "reward.model.url", config.url, where)
        self._config, self._endpoint = config, Endpoint(config, "reward.model")

    def close(self) -> None:
        self._endpoint.close()

    def assess(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[Opinion | Reward]:
        bodies = [self._body(prompt.text, text) for text in texts]
        found = self._endpoint.ask_all(self._config.route, bodies, read_raw_score)
        return [raw if isinstance(raw, Reward) else opinion(raw, self._config) for raw in found]

    def _body(self, question: str, text: str) -> Body:
        return {"model": self._config.model, "messages": conversation(question, text), "use_activation": False}


class LocalRewardModel(OpenEndedVerifier):
    """In this process."""

    def __init__(self, config: RewardModelConfig, length: LengthConfig) -> None:
        """Raises `ConfigError` where ``config.path`` is no classifier with one label."""
        super().__init__(config, length)
        check_classifier(config)
        self._config = config
        self._classifier: SequenceClassifier | None = None

    def start(self) -> None:
        """Load the model, once. Raises `ConfigError` where it can't be used."""
        self._classifier = self._classifier or SequenceClassifier(self._config)

    def close(self) -> None:
        self._classifier = None

    def assess(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[Opinion | Reward]:
        self.start()
        assert self._classifier is not None  # start has loaded it
        found = self._classifier.scores([conversation(prompt.text, text) for text in texts])
        return [raw if isinstance(raw, Reward) else opinion(raw, self._config) for raw in found]


def conversation(question: str, text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
