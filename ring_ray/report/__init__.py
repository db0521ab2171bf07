"""One self-contained HTML page that shows how one or several runs went: no script, no external resource.

`runs` reads what `tracking` wrote and `groups` puts runs together that differ only in their seed. `verdicts` judges
them, `estimates` says how sure their means are, `tables`, `pictures` and `domains` show them, and `page` writes.
"""

from ring_ray.report.page import write_report
from ring_ray.report.runs import ReportError

__all__ = ["ReportError", "write_report"]
