"""Who judges responses that no rule can, and how that becomes a reward."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from ring_ray.config.check import require, require_one_of
from ring_ray.config.keys import key

ROUTES = ("/classify", "/pooling")


@dataclass(kw_only=True, slots=True)
class EndpointConfig:
    """A server that judges: where it is, and how patiently it is asked."""

    url: str | None = key(
        None,
        "Address of the server, such as http://127.0.0.1:8000/v1 for a judge, and without /v1 for vLLM's pooling; null "
        "is none.",
    )
    model: str = key("", "Name that the server knows the model by.")
    api_key_variable: str = key(
        "REWARD_API_KEY", "Environment variable of the reward workers with the server's key; unset where it has none."
    )
    tries: int = key(
        4,
        "Requests until one meets no connection error, overload (429) or fault of the server (5xx); the waits between "
        "them grow from 0.5 to 8 s, or are what the server asks for.",
    )
    request_seconds: float = key(60.0, "Seconds that one request may take.")
    timeout_seconds: float = key(
        180.0, "Seconds that all verdicts on the responses to one prompt may take together, waits included."
    )
    concurrency: int = key(32, "Requests of one reward worker that are under way at a time; the server batches them.")
    cached: int = key(10_000, "Answers that each reward worker remembers, by a hash of all that it asked.")


@dataclass(kw_only=True, slots=True)
class RewardModelConfig(EndpointConfig):
    """The verifier `reward_model`: a sequence classifier with one label, behind `url` or in actors of its own."""

    route: str = key(
        "/classify", "Of the server, below url: `/classify` or `/pooling`, as vLLM's pooling runner has them."
    )
    path: str | None = key(
        None,
        "Hugging Face directory or hub name, for cluster.reward_model's actors in place of a server; null is none.",
    )
    dtype: str = key("bfloat16", "Of the model at path: `float32` or `bfloat16`.")
    trust_remote_code: bool = key(False, "Run Python code that comes with the model at path.")
    batch_tokens: int = key(
        16384, "Tokens of one forward pass of the model at path, padding included; a longer conversation goes alone."
    )
    center: float = key(0.0, "Raw score that becomes a reward of 0.5: rewards are sigmoid((raw - center) / scale).")
    scale: float = key(1.0, "Difference of raw scores that takes a reward from 0.5 to 0.73.")

    def __post_init__(self) -> None:
        check_endpoint(self, "reward.model")
        require(
            self.url is None or self.path is None,
            "reward.model.path",
            self.path,
            f"must be null where there is reward.model.url={self.url}: the model is either here or there",
        )
        require_one_of(ROUTES, "reward.model.route", self.route)
        require_one_of(("float32", "bfloat16"), "reward.model.dtype", self.dtype)
        require(self.batch_tokens >= 1, "reward.model.batch_tokens", self.batch_tokens, "must be at least 1")
        require(self.scale > 0, "reward.model.scale", self.scale, "must be above 0")


@dataclass(kw_only=True, slots=True)
class JudgeConfig(EndpointConfig):
    """The verifier `judge`: a language model with a rubric, behind an OpenAI-compatible server."""

    template: str | None = key(
        None,
        "Jinja file of what the judge is told; null is ring_ray/templates/judge.md.j2, which says what it is given.",
    )
    best: int = key(
        10, "Best score that the judge may give, a whole number; the worst is 0. Rewards are divided by it."
    )
    samples: int = key(1, "Opinions on a response, of which the mean counts.")
    temperature: float = key(0.0, "Sampling temperature of the judge; above 0 for several samples.")
    max_tokens: int = key(1024, "Tokens of one opinion, the judge's thoughts included.")
    structured: bool = key(True, "Have the server hold the judge to the form of its answer, by a JSON schema.")

    def __post_init__(self) -> None:
        check_endpoint(self, "reward.judge")
        for name in ("best", "samples", "max_tokens"):
            require(getattr(self, name) >= 1, f"reward.judge.{name}", getattr(self, name), "must be at least 1")
        require(self.best <= 100, "reward.judge.best", self.best, "must be at most 100: no judge tells more apart")
        require(self.temperature >= 0, "reward.judge.temperature", self.temperature, "must not be negative")
        require(
            self.samples == 1 or self.temperature > 0,
            "reward.judge.samples",
            self.samples,
            "needs reward.judge.temperature above 0: without it all samples are the same",
        )


@dataclass(kw_only=True, slots=True)
class LengthConfig:
    """What length costs where a reward model or a judge scores a response: both like it for its own sake."""

    free_tokens: int | None = key(None, "Response tokens that cost nothing; null is any number.")
    penalty: float = key(0.1, "Taken from the score, down to 0, for each free_tokens tokens more; parts count in part.")

    def __post_init__(self) -> None:
        require(
            self.free_tokens is None or self.free_tokens >= 1,
            "reward.length.free_tokens",
            self.free_tokens,
            "must be at least 1, or null",
        )
        require(self.penalty >= 0, "reward.length.penalty", self.penalty, "must not be negative")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of urlsplit, and of the port
        return False


def check_endpoint(config: EndpointConfig, section: str) -> None:
    """``section`` is what the keys of ``config`` begin with."""
    url = config.url
    require(
        url is None or _is_address(url), f"{section}.url", url, "must be http:// or https://, a host, and maybe a port"
    )
    require(
        url is None or "@" not in urlsplit(url).netloc,
        f"{section}.url",
        "...",
        f"must hold no password, which would be in the run's files: {section}.api_key_variable names where a key is",
    )
    require(url is None or config.model != "", f"{section}.model", config.model, f"{section}.url={url} needs a name")
    require(
        config.api_key_variable.isidentifier(),
        f"{section}.api_key_variable",
        "...",
        "is no environment variable's name; the key itself would be in the run's files",
    )
    for name in ("tries", "concurrency", "cached"):
        require(getattr(config, name) >= 1, f"{section}.{name}", getattr(config, name), "must be at least 1")
    for name in ("request_seconds", "timeout_seconds"):
        require(getattr(config, name) > 0, f"{section}.{name}", getattr(config, name), "must be above 0")
