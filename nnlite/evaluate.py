"""Evaluate a run: `python -m nnlite.evaluate RUN` prints the tables and writes RUN/report/."""

import argparse
import sys

from . import report, runs
from .errors import NnliteError
from .ops import NAMES


def main(arguments=None):
    p = argparse.ArgumentParser(prog="python -m nnlite.evaluate", description="Tables and pictures of a trained run.")
    p.add_argument("run", help="the run folder")
    p.add_argument("--device", default="auto", choices=NAMES)
    options = p.parse_args(arguments)
    try:
        run = runs.open_run(options.run, options.device)
        run.load_best()
        report.evaluate(run)
    except NnliteError as error:
        print(f"nnlite: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
