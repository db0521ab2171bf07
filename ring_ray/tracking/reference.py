"""docs/metrics.md and docs/grafana.json, made from the list of metrics."""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, TypeAlias

import jinja2

from ring_ray.metrics import FAMILIES, METRICS, NOTES, Family, Metric, gauge_name

Entry: TypeAlias = Metric | Family

GRAFANA_UNITS = {"s": "s", "GiB": "gbytes", "%": "percent"}  # Grafana's "gbytes" are 2**30 bytes
SOURCE = {"type": "prometheus", "uid": "${datasource}"}  # the dashboard's first variable
COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # of panels; a dashboard is 24 units wide


def sections() -> dict[str, list[Entry]]:
    """What a step reports, by prefix."""

    def prefix(entry: Entry) -> str:
        return entry.name.split("/")[0]

    entries: list[Entry] = [*METRICS, *FAMILIES]
    entries.sort(key=prefix)  # stable: within a prefix the order of the lists
    return {name: list(group) for name, group in groupby(entries, prefix)}


def metrics_page() -> str:
    """Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ring_ray"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("metrics.md.j2").render(sections=sections(), notes=NOTES, gauge_name=gauge_name)


def grafana_dashboard() -> dict[str, Any]:
    """A dashboard for Grafana's import: a row for each prefix, a panel for each metric, for one run or several."""
    panels: list[dict[str, Any]] = []
    y = 0
    for prefix, entries in sections().items():
        panels.append(
            {"type": "row", "title": prefix, "collapsed": False, "gridPos": _place(0, y, 24, 1), "panels": []}
        )
        panels += _panels(entries, y + 1)
        y += 1 + HEIGHT * -(-len(entries) // COLUMNS)
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "query": f"label_values({_series('step')}, run)",
            "refresh": 2,  # whenever the time range changes
            "multi": True,
            "includeAll": True,
        },
    ]
    return {
        "uid": "ring-ray",
        "title": "ring_ray",
        "schemaVersion": 39,
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": variables},
        "panels": [panel | {"id": number} for number, panel in enumerate(panels, 1)],
    }


def _panels(entries: list[Entry], top: int) -> Iterator[dict[str, Any]]:
    for index, entry in enumerate(entries):
        row, column = divmod(index, COLUMNS)
        one = "<" not in entry.name
        yield {
            "type": "timeseries",
            "title": entry.name,
            "description": f"{entry.meaning} [{entry.unit}]",
            "datasource": SOURCE,
            "gridPos": _place(column * WIDTH, top + row * HEIGHT, WIDTH, HEIGHT),
            "fieldConfig": {
                # Ray stops serving a gauge some seconds after a step, so a slow run has gaps between its points.
                "defaults": {"unit": GRAFANA_UNITS.get(entry.unit, "short"), "custom": {"spanNulls": True}},
                "overrides": [],
            },
            "targets": [
                {
                    "refId": "A",
                    "datasource": SOURCE,
                    "expr": _query(entry.name),
                    "legendFormat": "{{run}}" if one else "{{run}} {{__name__}}",
                }
            ],
        }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _series(name: str) -> str:
    return f"ray_{gauge_name(name)}"


def _query(name: str) -> str:
    """In PromQL; a placeholder of a family stands for anything."""
    if "<" not in name:
        return f'{_series(name)}{{run=~"$run"}}'
    pattern = _series(re.sub(r"<\w+>", "anything", name)).replace("anything", ".+")
    return f'{{__name__=~"{pattern}", run=~"$run"}}'
