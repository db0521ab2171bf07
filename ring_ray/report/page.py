"""The page itself: everything put into the template."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from ring_ray.metrics import METRICS
from ring_ray.report.domains import domain_pictures
from ring_ray.report.estimates import student_t
from ring_ray.report.groups import compared_settings, differences, group_runs
from ring_ray.report.pictures import group_pictures, run_pictures
from ring_ray.report.runs import read_runs
from ring_ray.report.tables import group_table, run_table
from ring_ray.report.verdicts import verdicts


def write_report(paths: Sequence[Path], output: Path) -> None:
    """Write ``output``, replacing it, about the runs in ``paths``, or in the directories of runs in it.

    A run that can't be shown is named on the page with what is wrong with it. Raises ReportError where none can be
    shown, or where a path is not a directory.
    """
    runs, damaged = read_runs(paths)
    groups = group_runs(runs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ring_ray"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        groups=groups,
        runs=runs,
        verdicts=[verdict for group in groups for verdict in verdicts(group)],
        damaged=damaged,
        group_table=group_table(groups),
        run_table=run_table(groups),
        t_factors={count: student_t(count - 1) for count in (2, 3, 5)},
        pictures=group_pictures(groups),
        run_pictures={group.name: run_pictures(group.runs[0]) + domain_pictures(group.runs[0]) for group in groups},
        differences=differences([compared_settings(group.runs[0]) for group in groups]),
        metrics=METRICS,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
