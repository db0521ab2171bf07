"""IFEval's instructions by this project's verifier and by lm-eval's: the same verdict, strictly and loosely?

    python -m tests.verifiers.lm_eval [--cases 2000] [--seed 0]

The first call installs lm-eval into a virtual environment of its own, `.benchmarks/lm-eval` (40 MB, no torch), in which
both run. Two instructions need nltk's data punkt_tab, in a directory that NLTK_DATA names; without it they are left
out, and named. Exit status 0 only where the verdicts of all others are equal.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.peers import ROOT, environment

REQUIREMENTS = Path(__file__).with_name("lm-eval-requirements.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="of each instruction")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    command = [environment(REQUIREMENTS) / "python", "-m", "tests.verifiers.lm_eval_peer"]
    # lm-eval downloads punkt_tab where it is missing, but only in the process of rank 0.
    variables = os.environ | {"PYTHONPATH": str(ROOT), "LOCAL_RANK": "1"}
    sys.exit(subprocess.run([*command, str(arguments.cases), str(arguments.seed)], cwd=ROOT, env=variables).returncode)


if __name__ == "__main__":
    main()
