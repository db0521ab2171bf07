import html.parser
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ring_ray.metrics import METRICS, AccuracyInterval
from ring_ray.report import CURVES, ReportError, moving_mean, write_report
from ring_ray.tracking import Tracker
from tests.unit.test_tracking import balanced_metrics, run_config

TITLES = (*(curve.title for curve in CURVES), "Accuracy", "Where tokens went", "Where tokens are", "Step time")


def write_run(run_dir: Path, *, steps: int = 12, trained_tokens: int = 1000, finished: bool = True) -> Path:
    with Tracker(run_config(run_dir)) as tracker:
        for step in range(1, steps + 1):
            tracker.log(balanced_metrics(step, trained_tokens=trained_tokens))
        if finished:
            tracker.summary({"base": AccuracyInterval.of(2, 512), "rl": AccuracyInterval.of(480, 512)})
    return run_dir


def report(tmp_path: Path, *run_dirs: Path) -> str:
    output = tmp_path / "reports" / "report.html"
    write_report(list(run_dirs), output)
    return output.read_text()


class Outline(html.parser.HTMLParser):
    """Collects what the tests ask for: figure titles, visible text, and every address that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.titles, self.text, self.addresses, self.tags, self._in_title = [], "", [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in_title = tag == "h3"
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]

    def handle_data(self, data):
        self.text += data
        if self._in_title:
            self.titles.append(data)
            self._in_title = False


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    directory = write_run(tmp_path_factory.mktemp("runs") / "first")
    (directory / "config.yaml").write_text("seed: 7\nmodel:\n  path: inclusionAI/Ring-lite\n")
    return directory


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    return report(tmp_path_factory.mktemp("page"), run)


def test_report_has_every_picture_and_fetches_nothing(page):
    outline = Outline(page)
    assert sorted(outline.titles) == sorted(TITLES)
    assert outline.tags.count("svg") == len(TITLES)
    assert all(address.startswith("#") for address in outline.addresses)
    assert "script" not in outline.tags
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not re.search(r"@import|url\((?!#)", page)


def test_report_says_what_was_run_and_how_it_ended(page):
    text = " ".join(Outline(page).text.split())
    assert "Every one of the 12 steps trained exactly 1,000 response tokens" in text
    assert "The ledger balanced after every step: each of the 13,200 generated tokens is in exactly one place." in text
    assert "93.8 % 91.3 % – 95.5 % 512 prompts" in text
    assert "inclusionAI/Ring-lite" in text
    assert all(metric.meaning in text for metric in METRICS)


def test_the_same_run_gives_the_same_page(run, page, tmp_path):
    assert report(tmp_path, run) == page


@pytest.mark.parametrize("chosen", ["selection: groups", "cutoff: response"])
def test_report_does_not_blame_an_algorithm_for_a_budget_that_it_does_not_keep(tmp_path, chosen):
    directory = write_run(tmp_path / "run", trained_tokens=900)
    (directory / "config.yaml").write_text(f"algo:\n  {chosen}\n")
    text = report(tmp_path, directory)
    assert "No exact token budget by choice: its 12 steps trained from 900 to 900 response tokens." in text
    assert "missed the token budget" not in text


def test_report_says_so_where_the_budget_was_missed_or_the_ledger_broke(tmp_path):
    with Tracker(run_config(tmp_path / "run")) as tracker:
        tracker.log(balanced_metrics(1))
        leaking = balanced_metrics(2, trained_tokens=900)
        tracker.log(replace(leaking, ledger=replace(leaking.ledger, generated=leaking.ledger.generated + 1)))
    text = " ".join(Outline(report(tmp_path, tmp_path / "run")).text.split())
    assert "1 of 2 steps missed the token budget of 1,000: they trained from 900 to 1,000." in text
    assert "The ledger did not balance after 1 of 2 steps" in text
    assert "the run is unfinished" in text


def test_values_that_were_not_finite_are_left_out(tmp_path):
    with Tracker(run_config(tmp_path / "run")) as tracker:
        for step in (1, 2, 3):
            tracker.log(balanced_metrics(step, grad_norm=float("nan") if step == 2 else 1.0))
    assert "Gradient norm" in Outline(report(tmp_path, tmp_path / "run")).titles


def test_several_runs_share_the_curves_and_have_a_row_each(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("c3po", "grpo")]
    page = report(tmp_path, *runs)
    outline = Outline(page)
    assert "2 runs compared" in outline.text
    assert outline.titles.count("Reward") == 1
    assert outline.titles.count("Step time") == 2
    assert len(re.findall(r'<td><span class="swatch"[^>]*></span>(c3po|grpo)</td>', page)) == 2


def test_what_the_user_named_is_escaped(tmp_path):
    run = write_run(tmp_path / "<img src=x> $a_b$")
    (run / "config.yaml").write_text("model:\n  path: <script>alert(1)</script>\n")
    outline = Outline(report(tmp_path, run))
    assert "script" not in outline.tags
    assert "img" not in outline.tags
    assert "<script>alert(1)</script>" in outline.text
    assert "<img src=x> $a_b$: by phase." in outline.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"run has no metrics\.jsonl"),
        ("", r"metrics\.jsonl is empty"),
        ("{oops\n", r"metrics\.jsonl:1 is not JSON"),
        ("[1]\n", r"metrics\.jsonl:1 is not a JSON object"),
        ('{"step": 1}\n', r"metrics\.jsonl:1 lacks c3po/carried_tokens"),
    ],
)
def test_a_directory_that_is_not_a_run_is_refused(tmp_path, content, message):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "metrics.jsonl").write_text(content)
    with pytest.raises(ReportError, match=message):
        report(tmp_path, tmp_path / "run")


def test_moving_mean():
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2.0, 3.0, 4.0]), 2), [1.0, 1.5, 2.5, 3.5])


@pytest.fixture
def run_job(monkeypatch):
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        runpy.run_path(str(Path(__file__).parents[2] / "jobs" / "report.py"), run_name="__main__")

    return run


def test_job_writes_into_the_run_directory_unless_told_otherwise(tmp_path, run_job, capsys):
    run = write_run(tmp_path / "run")
    for arguments, output in (
        ([], run / "report.html"),
        (["--output", f"{tmp_path}/page.html"], tmp_path / "page.html"),
    ):
        run_job(str(run), *arguments)
        assert capsys.readouterr().out.strip() == str(output)
        assert output.read_text().startswith("<!doctype html>")


def test_job_says_what_is_wrong(tmp_path, run_job, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_job(str(tmp_path))
    assert "has no metrics.jsonl" in capsys.readouterr().err
