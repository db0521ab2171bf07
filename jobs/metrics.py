"""Write docs/metrics.md and docs/grafana.json anew, after a change of ring_ray/metrics.py."""

import argparse
import json
from pathlib import Path

from ring_ray.tracking.reference import grafana_dashboard, metrics_page

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    (DOCS / "metrics.md").write_text(metrics_page(), encoding="utf-8")
    (DOCS / "grafana.json").write_text(json.dumps(grafana_dashboard(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
