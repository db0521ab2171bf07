"""A language model as a judge, with a rubric (LLM-as-a-judge, Zheng et al. 2023, arXiv 2306.05685)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jinja2
import msgspec

from ring_ray.config import ConfigError, JudgeConfig, LengthConfig
from ring_ray.rewards.base import read_answer
from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.open_ended.endpoint import Body, Endpoint, UnreadableAnswerError
from ring_ray.rewards.open_ended.verifier import OpenEndedVerifier, Opinion
from ring_ray.types import Prompt, Reward

_PROBE = "3f1c9a5e"  # a response that no template holds, and no filter changes
TEMPLATE = Path(__file__).parents[2] / "templates" / "judge.md.j2"


class Criteria(msgspec.Struct, forbid_unknown_fields=True):
    """What a row of data may tell the judge."""

    rubric: str | None = None
    reference: str | None = None  # a good answer


class _Judgement(msgspec.Struct):
    score: Annotated[int, msgspec.Meta(ge=0)]
    reason: str = ""


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


def criteria(prompt: Prompt) -> Criteria:
    """From ``prompt.answer``: a JSON object, or a reference answer as it is. Raises `AnswerError`."""
    return read_answer(prompt, Criteria) if prompt.answer.startswith("{") else Criteria(reference=prompt.answer)


def read_score(text: str, best: int) -> tuple[int, str]:
    """Score and reason of the judge's JSON object: all that it wrote, or else its last line. Nothing else counts.

    Raises `UnreadableAnswerError`.
    """
    stripped = text.strip()
    for candidate in (stripped, stripped.rpartition("\n")[2]):
        try:
            found = msgspec.json.decode(candidate.encode(), type=_Judgement)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            continue
        if found.score <= best:
            return found.score, found.reason
    raise UnreadableAnswerError(f"the judge's last line is no score from 0 to {best}: {shorten(stripped[-200:], 200)}")


class Judge(OpenEndedVerifier):
    """A language model behind an OpenAI-compatible server."""

    def __init__(self, config: JudgeConfig, length: LengthConfig) -> None:
        """Raises `ConfigError` where the config names no server, or a template that can't be used."""
        super().__init__(config, length)
        self._config, self._endpoint = config, Endpoint(config, "reward.judge")
        self._template = _load_template(config.template)

    def check(self, prompt: Prompt) -> None:
        criteria(prompt)

    def close(self) -> None:
        self._endpoint.close()

    def assess(self, prompt: Prompt, texts: Sequence[str]) -> Sequence[Opinion | Reward]:
        told = criteria(prompt)
        bodies = [self._body(prompt.text, text, told) for text in texts]
        return self._endpoint.ask_all("/chat/completions", bodies, self._read)

    def _body(self, question: str, text: str, told: Criteria) -> Body:
        config = self._config
        body: Body = {
            "model": config.model,
            "messages": [{"role": "user", "content": self._render(question, text, told)}],
            "n": config.samples,
            "temperature": config.temperature,
            "max_completion_tokens": config.max_tokens,
        }
        return body | {"response_format": _form(config.best)} if config.structured else body

    def _render(self, question: str, text: str, told: Criteria) -> str:
        """What is judged stands between marks that no text can hold: they are a hash of all that stands there."""
        said = msgspec.json.encode([question, text, told])
        return self._template.render(
            question=question,
            response=text,
            rubric=told.rubric,
            reference=told.reference,
            best=self._config.best,
            mark=hashlib.sha256(said).hexdigest()[:16],
        )

    def _read(self, answer: object) -> Opinion:
        """The mean of the opinions that can be read, of which there must be one."""
        try:
            choices = msgspec.convert(answer, _Completion).choices
        except msgspec.ValidationError as error:
            raise UnreadableAnswerError(f"no chat completion: {error}") from error
        found: list[tuple[int, str]] = []
        unreadable = UnreadableAnswerError("no choices")
        for choice in choices:
            try:
                found.append(self._score(choice))
            except UnreadableAnswerError as error:
                unreadable = error
        if not found:
            raise unreadable
        mean = sum(score for score, _ in found) / len(found)
        reason = f"the judge gives {mean:.3g} of {self._config.best}: {shorten(found[0][1], 120)}"
        return Opinion(mean / self._config.best, reason)

    def _score(self, choice: _Choice) -> tuple[int, str]:
        try:
            return read_score(choice.message.content or "", self._config.best)
        except UnreadableAnswerError as error:
            if choice.finish_reason != "length":
                raise
            limit = f"reward.judge.max_tokens={self._config.max_tokens}"
            raise UnreadableAnswerError(f"the judge was cut off by {limit} or by its context; {error}") from error


def _load_template(path: str | None) -> jinja2.Template:
    try:
        source = (Path(path) if path else TEMPLATE).read_text()
        template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(source)
        shown = template.render(question="", response=_PROBE, rubric=None, reference=None, best=10, mark="")
    except Exception as error:  # a template computes, and may break anywhere
        raise ConfigError(f"reward.judge.template={path!r}: {error}") from error
    if _PROBE not in shown:
        raise ConfigError(f"reward.judge.template={path!r}: it does not show the judge the {{{{ response }}}}")
    return template


def _form(best: int) -> dict[str, object]:
    """That of `_Judgement`, as OpenAI's API has it: the reason first, so that the score follows from it."""
    properties = {"reason": {"type": "string"}, "score": {"type": "integer", "enum": list(range(best + 1))}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["reason", "score"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": schema}}
