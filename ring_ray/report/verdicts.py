"""Whether runs kept what every run promises, the token budget and the ledger, and what befell them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ring_ray.report.groups import RunGroup
from ring_ray.report.runs import Run, all_steps


class Verdict(NamedTuple):
    text: str
    good: bool | None  # None: neither


def verdicts(group: RunGroup) -> Iterator[tuple[str, Verdict]]:
    """Whom each is about, and what it says: the whole group where all is well, else each of its runs."""
    for judge in (_judge_budget, _judge_ledger):
        together = judge(group.runs)
        if together.good is False:
            yield from ((run.name, judge([run])) for run in group.runs)
        else:
            yield group.name, together
    for run in group.runs:
        yield from ((run.name, verdict) for verdict in _mishaps(run))
        if not run.summary:
            yield run.name, Verdict("No summary.json: the run is unfinished, so it has no accuracy yet.", good=False)


def _judge_budget(runs: Sequence[Run]) -> Verdict:
    trained = all_steps(runs, "c3po/trained_tokens")
    steps, spread = _steps(runs), f"from {trained.min():,.0f} to {trained.max():,.0f}"
    if not runs[0].keeps_budget:
        return Verdict(f"No exact token budget by choice: its {steps} trained {spread} response tokens.", good=None)
    if missed := sum(run.off_budget for run in runs):
        budget = f"the token budget of {runs[0].series('c3po/token_budget')[-1]:,.0f}"
        return Verdict(f"{missed} of {steps} missed {budget}: they trained {spread}.", good=False)
    return Verdict(
        f"Every one of the {steps} trained exactly {trained[0]:,.0f} response tokens, its budget.", good=True
    )


def _judge_ledger(runs: Sequence[Run]) -> Verdict:
    generated = sum(run.series("ledger/generated")[-1] for run in runs)
    if broken := sum(run.unbalanced for run in runs):
        lost = "generated tokens were lost or counted twice"
        return Verdict(f"The ledger did not balance after {broken} of {_steps(runs)}: {lost}.", good=False)
    place = f"each of the {generated:,.0f} generated tokens is in exactly one place"
    return Verdict(f"The ledger balanced after every step: {place}.", good=True)


def _mishaps(run: Run) -> Iterator[Verdict]:
    if faults := run.faults:
        kinds = ", ".join(f"{kind} {number}" for kind, number in faults.most_common())
        yield Verdict(f"Faults that were made good, by what broke: {kinds}.", good=None)
    if skipped := run.skipped:
        yield Verdict(f"{skipped} of {_steps([run])} trained nothing: their numbers were not finite.", good=False)


def _steps(runs: Sequence[Run]) -> str:
    steps = f"{sum(len(run.rows) for run in runs):,} steps"
    return steps if len(runs) == 1 else f"{steps} of {len(runs)} runs"
