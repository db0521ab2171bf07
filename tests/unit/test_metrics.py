"""The list of metrics, and what is made from it."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from ring_ray.metrics import FAMILIES, METRICS, coefficient_of_variation, flatten, gauge_name, wilson_interval
from ring_ray.tracking import Tracker
from ring_ray.tracking.host import HostMeter
from ring_ray.tracking.reference import grafana_dashboard, metrics_page
from ring_ray.types import Fault
from tests.unit.test_tracking import distinct_metrics, read_jsonl, run_config

ROOT = Path(__file__).parents[2]

CONTRACT = {
    "step": 3,
    "c3po/token_budget": 8192,
    "c3po/trained_tokens": 101,
    "c3po/carried_tokens": 102,
    "c3po/segments": 103,
    "c3po/groups": 104,
    "reward/mean": 105,
    "reward/std": 106,
    "rollout/response_length_mean": 108,
    "c3po/trained_response_length_mean": 109,
    "rollout/truncated_fraction": 111,
    "c3po/zero_advantage_fraction": 112,
    "c3po/staleness_mean": 113,
    "c3po/staleness_max": 114,
    "c3po/lost_response_length_mean": 110,
    "reward/math/mean": 0.75,
    "reward/math/accuracy": 0.5,
    "reward/code/mean": 0.125,
    "reward/code/accuracy": 0.0625,
    "reward/math/failures": 3,
    "reward/code/failures": 4,
    "perf/math/verdict_seconds_p50": 0.25,
    "perf/math/verdict_seconds_p99": 0.375,
    "perf/code/verdict_seconds_p50": 0.625,
    "perf/code/verdict_seconds_p99": 0.875,
    "policy/loss": 201,
    "policy/grad_norm": 202,
    "policy/learning_rate": 203,
    "policy/entropy": 204,
    "policy/kl": 205,
    "policy/clip_fraction": 206,
    "policy/ratio_max": 207,
    "policy/behaviour_kl": 208,
    "policy/truncated_fraction": 209,
    "policy/masked_fraction": 210,
    "moe/balance_loss": 211,
    "moe/z_loss": 212,
    "perf/micro_batches": 213,
    "policy/skipped": 214,
    "ledger/generated": 301,
    "ledger/in_flight": 302,
    "ledger/waiting": 303,
    "ledger/queued": 304,
    "ledger/trained": 305,
    "ledger/filtered": 306,
    "ledger/evicted": 307,
    "ledger/dropped": 308,
    "rollout/generated_tokens": 500,
    "perf/step_seconds": 4,
    "perf/wait_seconds": 1.5,
    "perf/update_seconds": 2.5,
    "perf/trained_tokens_per_second": 101 / 4,
    "perf/generated_tokens_per_second": 500 / 4,
    "memory/update/policy_gib": 2.0,
}
"""Every name of a step with what `distinct_metrics` holds in the field that belongs to it."""


def test_flatten_reads_every_metric_from_its_own_field():
    assert flatten(distinct_metrics()) == CONTRACT


def matches(name: str, pattern: str) -> bool:
    """Whether ``name`` is what ``pattern`` documents, with its <placeholders> filled in."""
    return bool(re.fullmatch(re.sub("<[a-z]+>", "[^/]+", pattern), name))


def test_a_step_logs_what_is_documented_and_nothing_else(tmp_path):
    with Tracker(run_config(tmp_path)) as tracker:
        tracker.fault(Fault(kind="rollout", what="an engine died", seconds=2.0))
        tracker.log(distinct_metrics())
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    documented = [metric.name for metric in (*METRICS, *FAMILIES)]
    for name in row:
        assert any(matches(name, pattern) for pattern in documented), name
    gpu = "sys/gpu<index>_memory_used_gib"  # not where there is none
    missing = [pattern for pattern in documented if not any(matches(name, pattern) for name in row)]
    assert missing in ([], [gpu])
    assert row["sys/memory_used_gib"] > 0
    assert 0 <= row["sys/cpu_percent"] <= 100


@pytest.mark.parametrize(
    ("file", "made"),
    [("metrics.md", metrics_page), ("grafana.json", lambda: json.dumps(grafana_dashboard(), indent=2))],
)
def test_the_docs_are_up_to_date(file, made):
    assert (ROOT / "docs" / file).read_text().rstrip() == made().rstrip(), "run: python jobs/metrics.py"


def test_the_dashboard_shows_every_metric_of_every_run():
    dashboard = grafana_dashboard()
    panels = [panel for panel in dashboard["panels"] if panel["type"] == "timeseries"]
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == sorted({metric.name.split("/")[0] for metric in (*METRICS, *FAMILIES)})
    assert {panel["title"] for panel in panels} == {metric.name for metric in (*METRICS, *FAMILIES)}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    for name in CONTRACT:
        series = f"ray_{gauge_name(name)}"
        exact = f'{series}{{run=~"$run"}}'
        regexes = re.findall(r'__name__=~"([^"]*)"', " ".join(queries))
        assert exact in queries or any(re.fullmatch(regex, series) for regex in regexes), name
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "run"}


def test_no_panel_covers_another():
    taken = set()
    for panel in grafana_dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


# Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_symmetric_and_refuses_impossible_counts():
    low, high = wilson_interval(29, 29)
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(0, 29))
    for successes, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
            wilson_interval(successes, n)


def test_coefficient_of_variation_is_undefined_around_zero_and_beyond_the_finite():
    assert coefficient_of_variation([4, 4, 4]) == 0
    assert coefficient_of_variation([0.0, 0.0]) is None
    assert coefficient_of_variation([1.0, float("inf")]) is None


def test_the_memory_of_every_gpu_of_the_node_is_read(monkeypatch):
    used = [3 * 2**30, 5 * 2**30]
    monkeypatch.setattr("pynvml.nvmlInit", lambda: None)
    monkeypatch.setattr("pynvml.nvmlDeviceGetCount", lambda: len(used))
    monkeypatch.setattr("pynvml.nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr("pynvml.nvmlDeviceGetMemoryInfo", lambda gpu: SimpleNamespace(used=used[gpu]))
    values = HostMeter().read()
    assert {name: value for name, value in values.items() if "gpu" in name} == {
        "sys/gpu0_memory_used_gib": 3.0,
        "sys/gpu1_memory_used_gib": 5.0,
    }
