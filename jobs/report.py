"""Write one self-contained HTML page about one run, or about several to compare them, over their seeds."""

import argparse
from pathlib import Path

from ring_ray.report import ReportError, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="directory of a run, or of the runs of a sweep"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="page to write (default: report.html in the first RUN)"
    )
    arguments = parser.parse_args()
    output = arguments.output or arguments.runs[0] / "report.html"
    try:
        write_report(arguments.runs, output)
    except ReportError as error:
        parser.error(str(error))
    print(output)


if __name__ == "__main__":
    main()
