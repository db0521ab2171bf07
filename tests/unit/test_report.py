import html.parser
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ring_ray.metrics import METRICS
from ring_ray.report import ReportError, write_report
from ring_ray.report.domains import domain_pictures
from ring_ray.report.pictures import CURVES
from ring_ray.report.runs import read_runs
from ring_ray.tracking import Tracker
from ring_ray.types import Fault
from tests.unit.run_directories import write_run, write_sweep
from tests.unit.test_tracking import balanced_metrics, run_config

OVERLAID = (*(curve.title for curve in CURVES), "Accuracy")
BY_DOMAIN = ("Accuracy by domain", "Failed verdicts by domain", "Verdict time by domain")
PER_RUN = ("Where tokens went", "Where tokens are", "Step time", *BY_DOMAIN)
TITLES = OVERLAID + PER_RUN


def report(tmp_path: Path, *run_dirs: Path) -> str:
    output = tmp_path / "reports" / "report.html"
    write_report(list(run_dirs), output)
    return output.read_text()


class Outline(html.parser.HTMLParser):
    """Collects what the tests ask for: figure titles, text, and every address that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.titles, self.text, self.addresses, self.tags, self._in_title = [], "", [], [], False
        self.feed(page)

    @property
    def sentences(self) -> str:
        return " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += " " * (tag in ("br", "td", "th"))
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
    assert_fetches_nothing(page)


def assert_fetches_nothing(page: str) -> None:
    outline = Outline(page)
    assert all(address.startswith("#") for address in outline.addresses)
    assert "script" not in outline.tags
    assert not re.search(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not re.search(r"@import|url\((?!#)", page)


def test_report_says_what_was_run_and_how_it_ended(page):
    text = Outline(page).sentences
    assert "Every one of the 12 steps trained exactly 1,000 response tokens" in text
    assert "The ledger balanced after every step: each of the 13,200 generated tokens is in exactly one place." in text
    assert "93.8 % 91.3 – 95.5 % 512 prompts" in text
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
    text = Outline(report(tmp_path, tmp_path / "run")).sentences
    assert "1 of 2 steps missed the token budget of 1,000: they trained from 900 to 1,000." in text
    assert "The ledger did not balance after 1 of 2 steps" in text
    assert "the run is unfinished" in text


def test_report_tells_what_befell_a_run(tmp_path):
    with Tracker(run_config(tmp_path / "run")) as tracker:
        for step, kind in enumerate(("rollout", "policy", "rollout"), 1):
            tracker.fault(Fault(kind=kind, what="it died", seconds=1.0))
            metrics = balanced_metrics(step)
            tracker.log(replace(metrics, update=replace(metrics.update, skipped=step == 2)))
    text = Outline(report(tmp_path, tmp_path / "run")).sentences
    assert "Faults that were made good, by what broke: rollout 2, policy 1." in text
    assert "1 of 3 steps trained nothing: their numbers were not finite." in text


def test_values_that_were_not_finite_are_left_out(tmp_path):
    with Tracker(run_config(tmp_path / "run")) as tracker:
        for step in (1, 2, 3):
            tracker.log(balanced_metrics(step, grad_norm=float("nan") if step == 2 else 1.0))
    assert "Gradient norm" in Outline(report(tmp_path, tmp_path / "run")).titles


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def comparison(sweep, tmp_path_factory) -> str:
    return report(tmp_path_factory.mktemp("page"), sweep)


def rows(page: str, name: str) -> list[list[str]]:
    """The cells of every table row that begins with a swatch and ``name``."""
    found = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [[Outline(cell).sentences for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)] for row in found]
    return [row for row in cells if row and row[0] == name]


def test_a_sweep_is_one_argument_and_its_seeds_share_a_colour_and_a_row(comparison):
    outline = Outline(comparison)
    assert "6 runs compared" in outline.text
    for algo in ("c3po", "grpo"):
        (setting,) = rows(comparison, f"algo={algo}")
        assert setting[1:3] == ["0, 1, 2", "12"]
        assert [len(rows(comparison, f"algo={algo},seed={seed}")) for seed in range(3)] == [1, 1, 1]
    colors = re.findall(r'<td><span class="swatch" style="background: (#\w+)"></span>algo=(\w+)', comparison)
    assert len(set(colors)) == 2
    assert sorted(outline.titles) == sorted(OVERLAID + 2 * PER_RUN)
    assert_fetches_nothing(comparison)


def test_a_row_of_the_table_is_what_its_runs_say_together(comparison, sweep):
    runs = [json.loads((sweep / f"algo=grpo,seed={seed}" / "summary.json").read_text()) for seed in range(3)]
    accuracies = [run["accuracy"]["rl"]["value"] for run in runs]
    margin = 4.302653 * np.std(accuracies, ddof=1) / 3**0.5
    mean = np.mean(accuracies)
    (setting,) = rows(comparison, "algo=grpo")
    assert setting[5] == f"{100 * mean:.1f} % {100 * (mean - margin):.1f} – {100 * (mean + margin):.1f} % 3 runs"
    least, most = min(run["trained_tokens_min"] for run in runs), max(run["trained_tokens_max"] for run in runs)
    assert setting[7].endswith(f"{least:,} to {most:,}")
    tokens, norms = (np.mean([run[name] for run in runs]) for name in ("trained_tokens_cv", "grad_norm_cv"))
    assert setting[-1] == f"{tokens:.3f} of tokens {norms:.3f} of gradient norms"
    (c3po,) = rows(comparison, "algo=c3po")
    assert c3po[7] == "6,144 at every step"


def test_a_comparison_says_once_what_holds_for_all_runs_of_a_setting(comparison):
    text = Outline(comparison).sentences
    assert "algo=c3po: Every one of the 36 steps of 3 runs trained exactly 6,144 response tokens, its budget." in text
    assert "algo=grpo: No exact token budget by choice: its 36 steps of 3 runs trained from" in text
    assert text.count("The ledger balanced after every step") == 2


def test_a_comparison_names_the_run_that_broke_a_promise(tmp_path, sweep):
    broken = tmp_path / "broken"
    shutil.copytree(sweep / "algo=c3po,seed=0", broken)
    first, *others = (broken / "metrics.jsonl").read_text().splitlines()
    (broken / "metrics.jsonl").write_text(
        "\n".join([first.replace('"ledger/queued": ', '"ledger/queued": 1'), *others])
    )
    text = Outline(report(tmp_path, broken, sweep / "algo=c3po,seed=1")).sentences
    assert "broken: The ledger did not balance after 1 of 12 steps" in text
    assert "seed=1: The ledger balanced after every step" in text


def test_a_report_tells_its_readers_no_directory_of_the_machine(sweep, comparison):
    assert str(sweep) in next(sweep.glob("*/config.yaml")).read_text()
    assert str(sweep) not in comparison


def test_a_comparison_shows_where_the_configurations_differ(comparison):
    text = Outline(comparison).sentences
    assert "algo.aggregation budget response" in text
    assert "algo.selection tokens groups" in text
    assert "algo.objective" not in text[text.index("Where the configurations differ") : text.index("Configuration of")]


def test_a_page_of_six_long_runs_stays_small(tmp_path):
    page = report(tmp_path, write_sweep(tmp_path / "sweep", steps=300))
    assert len(page.encode()) < 1_500_000


def test_runs_that_can_not_be_shown_are_named(tmp_path, sweep):
    shutil.copytree(sweep / "algo=c3po,seed=0", tmp_path / "sweep" / "seed=0")
    for seed, content in enumerate((None, "", "{oops"), 1):
        failed = tmp_path / "sweep" / f"seed={seed}"
        failed.mkdir()
        (failed / "config.yaml").write_text("seed: 1\n")
        if content is not None:
            (failed / "metrics.jsonl").write_text(content)
    (tmp_path / "sweep" / "notes").mkdir()
    text = Outline(report(tmp_path, tmp_path / "sweep")).sentences
    assert "seed=1 is not shown: there is no metrics.jsonl" in text
    assert "seed=2 is not shown: metrics.jsonl is empty: the run has not finished its first step." in text
    assert "seed=3 is not shown: metrics.jsonl:1 is not JSON" in text
    assert "notes" not in text


def test_a_run_named_twice_counts_once(sweep):
    runs, _ = read_runs([sweep, sweep / "algo=c3po,seed=0"])
    assert len(runs) == 6


def test_an_unfinished_run_is_compared_as_far_as_it_went(tmp_path, sweep):
    for seed in (0, 1):
        shutil.copytree(sweep / f"algo=c3po,seed={seed}", tmp_path / f"seed={seed}")
    (tmp_path / "seed=1" / "summary.json").unlink()
    lines = (tmp_path / "seed=1" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "seed=1" / "metrics.jsonl").write_text("".join(lines[:5]))
    page = report(tmp_path, tmp_path / "seed=0", tmp_path / "seed=1")
    assert "seed=1: No summary.json: the run is unfinished" in Outline(page).sentences
    (setting,) = rows(page, "algo=c3po")
    assert setting[1:3] == ["0, 1", "5 to 12"]
    assert setting[5].endswith("512 prompts")


def test_a_run_of_a_version_with_fewer_metrics_can_be_shown(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("policy/entropy", "policy/old"))
    assert "Entropy" in Outline(report(tmp_path, run)).titles


def test_what_the_user_named_is_escaped(tmp_path):
    run = write_run(tmp_path / "<img src=x> $a_b$")
    (run / "config.yaml").write_text("model:\n  path: <script>alert(1)</script>\n")
    outline = Outline(report(tmp_path, run))
    assert "script" not in outline.tags
    assert "img" not in outline.tags
    assert "<script>alert(1)</script>" in outline.text
    assert "<img src=x> $a_b$: by phase." in outline.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("notes.txt", "", r"run: there is no metrics\.jsonl"),
        ("metrics.jsonl", "", r"run: metrics\.jsonl is empty"),
        ("metrics.jsonl", "{oops\n", r"metrics\.jsonl:1 is not JSON"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl:1 is not a JSON object"),
        ("metrics.jsonl", '{"step": 1}\n', r"metrics\.jsonl:1 lacks c3po/token_budget, c3po/trained_tokens"),
        ("summary.json", "{}", r"summary\.json lacks accuracy, wall_seconds"),
        ("config.yaml", "a: [", r"config\.yaml can't be read"),
        ("config.yaml", "- a", r"config\.yaml is not a mapping"),
    ],
)
def test_a_directory_that_is_not_a_run_is_refused(tmp_path, run, file, content, message):
    directory = tmp_path / "run"
    directory.mkdir()
    if file in ("summary.json", "config.yaml"):
        shutil.copy(run / "metrics.jsonl", directory)
    (directory / file).write_text(content)
    with pytest.raises(ReportError, match=message):
        report(tmp_path, directory)


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
    for path, message in ((tmp_path, "there is no metrics.jsonl"), (tmp_path / "typo", "typo is not a directory")):
        with pytest.raises(SystemExit, match="2"):
            run_job(str(path))
        assert message in capsys.readouterr().err


def test_domains_are_those_of_any_step(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", steps=2)
    first, second = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    late = {name.replace("/math/", "/late/"): value for name, value in second.items() if "/math/" in name}
    (run_dir / "metrics.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second | late)}\n")
    (run,), _ = read_runs([run_dir])
    assert run.domains == ["code", "late", "math"]
    for picture in domain_pictures(run):
        assert all(f">{domain}</text>" in picture.svg for domain in run.domains)


def test_verdict_times_have_units_and_no_tex(run: Path) -> None:
    (read,), _ = read_runs([run])
    *_, times = domain_pictures(read)
    assert times.title == "Verdict time by domain"
    assert re.search(r">\d+ [mµ]?s</text>", times.svg)
    assert "$" not in times.svg


def test_a_run_without_domains_has_no_pictures_of_them(run: Path) -> None:
    (read,), _ = read_runs([run])
    plain = [{name: value for name, value in row.items() if not name.startswith("reward/")} for row in read.rows]
    assert domain_pictures(replace(read, rows=plain)) == []
