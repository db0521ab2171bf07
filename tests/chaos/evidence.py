"""Counts every token again from a run's journal, and holds what the run says against it.

::

    journal.jsonl ──surviving──► what led to the final policy ──Recount──► a ledger at each step ─┐
                                                                           spans trained twice    ├─► Evidence
    metrics.jsonl ────────────────────────────────────────────────────► the run's own ledgers ────┘

What happened after a checkpoint that the run went back to has not happened: nothing of it is in the final policy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ring_ray.config import AlgoConfig
from ring_ray.metrics import Values, ledger_of
from ring_ray.types import Ledger
from tests.chaos.journal import (
    NOTHING,
    Added,
    Begun,
    BufferRestored,
    Event,
    PolicyRestored,
    Response,
    Saved,
    Scored,
    Settled,
    Span,
    Trained,
    Turn,
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found of a whole run. Counts are response tokens."""

    steps: int
    lost: int  # that an engine returned, and the run's ledger has not where they are
    dropped: int  # of groups that were not judged, which a verifier's death must not be the reason of
    trained_twice: int
    unbalanced: list[int]  # steps whose ledger does not add up
    off_budget: list[int]  # steps that trained another number of tokens than the budget
    problems: list[str]  # everything that was wrong, for people

    @property
    def clean(self) -> bool:
        counts = (self.lost, self.dropped, self.trained_twice)
        return not (self.problems or any(counts) or self.unbalanced or self.off_budget)


def evidence(events: Iterable[Event], rows: Sequence[Values], algo: AlgoConfig) -> Evidence:
    """``rows`` are those of metrics.jsonl, ``algo`` is what the run was told."""
    timeline, problems = surviving(events)
    recount = Recount(algo)
    for event in timeline:
        recount.follow(event)
    lost, disagreements = compare(recount.ledgers, {int(row["step"]): ledger_of(row) for row in rows})
    off_budget = [
        int(row["step"])
        for row in rows
        if {row["c3po/trained_tokens"], recount.trained.get(int(row["step"]))} != {row["c3po/token_budget"]}
    ]
    return Evidence(
        steps=len(rows),
        lost=lost + recount.lost,
        dropped=int(rows[-1]["ledger/dropped"]) if rows else 0,
        trained_twice=recount.trained_twice,
        unbalanced=[int(row["step"]) for row in rows if not ledger_of(row).balanced],
        off_budget=off_budget,
        problems=problems + recount.problems + disagreements + discontinuities(rows),
    )


def surviving(events: Iterable[Event]) -> tuple[list[Event], list[str]]:
    """The events up to the last step that its state is the result of, and what is wrong with how it came about."""
    timeline: list[Event] = []
    problems: list[str] = []
    saved: dict[int, int] = {0: 0}  # by step: how long the timeline was when the buffer's state was taken
    policy = settled = 0  # optimizer steps that the policy has taken, and that the buffer knows of
    anew = False
    for event in events:
        if isinstance(event, Begun):
            policy, anew = 0, True
            continue
        if anew and not isinstance(event, PolicyRestored | BufferRestored):
            timeline, saved, settled = [], {0: 0}, 0
        anew = False
        if isinstance(event, PolicyRestored):
            policy = event.step
        elif isinstance(event, BufferRestored):
            if event.step not in saved:
                problems.append(f"the buffer went back to step {event.step}, which was never saved")
            timeline, settled = timeline[: saved.get(event.step)], event.step
        else:
            if isinstance(event, Trained):
                policy += 1
                if policy != event.step:
                    problems.append(f"step {event.step} was step {policy} of the policy")
            elif isinstance(event, Settled):
                settled = event.step
                if policy != settled:
                    problems.append(f"the buffer was told of step {settled} when the policy was at {policy}")
            elif isinstance(event, Saved):
                saved[settled] = len(timeline)
            timeline.append(event)
    # The prompts of the evaluation that follows have the numbers of others.
    end = max((number for number, event in enumerate(timeline, start=1) if isinstance(event, Settled)), default=0)
    return timeline[:end], problems


@dataclass
class Group:
    """A prompt's responses."""

    responses: tuple[Response, ...]
    added: bool = False
    verdict: Scored | None = None
    trained: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # by digest: how often each token was

    def copies(self, digest: str) -> int:
        """Responses that are equal can't be told apart, and each may be trained once."""
        return sum(response.digest == digest for response in self.responses)


class Recount:
    """Where every token is, from what engines returned, verifiers judged and the policy trained.

    Attributes:
        ledgers: by step, when it was settled.
        trained: tokens, by step.
        lost: tokens that an engine had returned and that were no longer there when an engine went on.
        trained_twice: tokens.
        problems: for people.
    """

    def __init__(self, algo: AlgoConfig) -> None:
        self.ledgers: dict[int, Ledger] = {}
        self.trained: dict[int, int] = {}
        self.lost = self.trained_twice = 0
        self.problems: list[str] = []
        self._algo = algo
        self._groups: dict[int, Group] = {}  # by prompt, those that have tokens whose place is not final
        self._closed: set[int] = set()  # the other prompts that there were
        self._gone = Ledger()  # where their tokens are

    def follow(self, event: Event) -> None:
        match event:
            case Turn():
                self._turn(event)
            case Added():
                self._add(event)
            case Scored():
                self._score(event)
            case Trained():
                self.trained[event.step] = sum(span.stop - span.start for span in event.spans)
                for span in event.spans:
                    self._train(span, event.step)
            case Settled():
                self.ledgers[event.step] = self._settle(event.step)

    def _turn(self, turn: Turn) -> None:
        if turn.prompt in self._closed:
            self.problems.append(f"prompt {turn.prompt} was generated again after its end")
            return
        group = self._groups.setdefault(turn.prompt, Group(responses=()))
        known = group.responses or (Response(digest=NOTHING, versions=(), finished=False),) * len(turn.responses)
        for before, begins in zip(known, turn.begins, strict=True):
            if before.digest != begins:
                self.lost += len(before)
                self.problems.append(f"prompt {turn.prompt}: a response did not go on from its {len(before)} tokens")
        group.responses = turn.responses

    def _add(self, added: Added) -> None:
        group = self._groups.get(added.prompt)
        if group is None or group.added or added.digests != tuple(one.digest for one in group.responses):
            self.problems.append(f"prompt {added.prompt}: the buffer was not given once what the engine had returned")
        else:
            group.added = True

    def _score(self, scored: Scored) -> None:
        group = self._groups.get(scored.prompt)
        if group is None or not group.added or group.verdict is not None:
            self.problems.append(f"prompt {scored.prompt} was not scored once, after it was added")
        else:
            group.verdict = scored

    def _train(self, span: Span, step: int) -> None:
        tokens = span.stop - span.start
        if span.prompt in self._closed:
            self.trained_twice += tokens
            self.problems.append(f"step {step} trained {tokens} tokens of prompt {span.prompt} that were done with")
            return
        group = self._groups.get(span.prompt)
        response = next((one for one in group.responses if one.digest == span.digest), None) if group else None
        if group is None or response is None or group.verdict is None or span.stop > len(response):
            self.problems.append(f"step {step} trained {tokens} tokens of prompt {span.prompt} that nobody had scored")
            return
        times = group.trained.setdefault(span.digest, np.zeros(len(response), np.int64))
        times[span.start : span.stop] += 1
        if twice := int((times[span.start : span.stop] > group.copies(span.digest)).sum()):
            self.trained_twice += twice
            self.problems.append(f"step {step} trained {twice} tokens of prompt {span.prompt} a second time")

    def _settle(self, step: int) -> Ledger:
        found = self._gone
        for prompt, group in list(self._groups.items()):
            places = self._places(group, step)
            if group.verdict is not None and not places.queued:
                self._closed.add(prompt)
                self._gone = plus(self._gone, places)
                del self._groups[prompt]
            found = plus(found, places)
        return found

    def _places(self, group: Group, step: int) -> Ledger:
        """Of a group's tokens."""
        tokens = sum(map(len, group.responses))
        unfinished = sum(len(response) for response in group.responses if not response.finished)
        if group.verdict is None:
            return Ledger(generated=tokens, in_flight=unfinished, waiting=tokens - unfinished)
        if not group.verdict.reached:
            return Ledger(generated=tokens, dropped=tokens)
        if group.verdict.equal and self._algo.filter_zero_advantage:
            return Ledger(generated=tokens, filtered=tokens)
        trained = fresh = 0
        for response in {response.digest: response for response in group.responses}.values():
            copies = group.copies(response.digest)
            times = group.trained.get(response.digest, np.zeros(len(response), np.int64)).clip(max=copies)
            versions = np.repeat(*np.array(response.versions, np.int64).reshape(-1, 2).T)
            trained += int(times.sum())
            fresh += int((copies - times)[versions >= step - self._algo.max_staleness].sum())
        return Ledger(generated=tokens, trained=trained, queued=fresh, evicted=tokens - trained - fresh)


def plus(one: Ledger, other: Ledger) -> Ledger:
    added = asdict(other)
    return Ledger(**{place: tokens + added[place] for place, tokens in asdict(one).items()})


def compare(recounted: Mapping[int, Ledger], reported: Mapping[int, Ledger]) -> tuple[int, list[str]]:
    """The most tokens that the run's ledger of a step has not where the recount has them, and where both differ."""
    lost, problems = 0, []
    for step, own in reported.items():
        expected = recounted.get(step)
        if expected is None:
            problems.append(f"step {step} is in metrics.jsonl, but the journal has not got it")
        elif expected != own:
            counted, said = asdict(expected), asdict(own)
            del counted["generated"]
            lost = max(lost, sum(max(0, tokens - said[place]) for place, tokens in counted.items()))
            problems.append(f"step {step}: the ledger is {own}, but recounted {expected}")
    return lost, problems


def discontinuities(rows: Sequence[Values]) -> list[str]:
    """What a reader of metrics.jsonl alone would wonder about."""
    problems = []
    steps = [int(row["step"]) for row in rows]
    if steps != list(range(1, len(rows) + 1)):
        problems.append(f"metrics.jsonl has not each step once, in order: {steps}")
    for before, after in pairwise(rows):
        step = int(after["step"])
        if after["ledger/trained"] - before["ledger/trained"] != after["c3po/trained_tokens"]:
            problems.append(f"step {step}: ledger/trained did not grow by c3po/trained_tokens")
        problems += [
            f"step {step}: ledger/{place} shrank"
            for place in ("generated", "filtered", "evicted", "dropped")
            if after[f"ledger/{place}"] < before[f"ledger/{place}"]
        ]
    return problems
