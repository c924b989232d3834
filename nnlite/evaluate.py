"""Evaluate a run: `python -m nnlite.evaluate RUN` prints the tables and writes RUN/report/.

`--data OTHER` is the production check: how each class fares on other images, against the run's own test part.
"""

import argparse
import sys

from . import command, runs
from .errors import expected
from .ops import NAMES


def main(arguments=None):
    p = argparse.ArgumentParser(prog="python -m nnlite.evaluate", description="Tables and pictures of a trained run.")
    p.add_argument("run", help="the run folder")
    p.add_argument("--data", help="other images of a classifier's classes, measured beside its own")
    p.add_argument("--skip-broken", action="store_true", help="leave out files of --data that are no images")
    p.add_argument("--device", default="auto", choices=NAMES)
    options = p.parse_args(arguments)
    return command.run(lambda: evaluate(options))


def evaluate(options):
    if options.skip_broken and options.data is None:
        raise expected("--skip-broken", "--data OTHER beside it", "none")
    run = runs.open_run(options.run, options.device)
    run.load_best()
    run.experiment.evaluate(run, options.data, options.skip_broken)
    return 0


if __name__ == "__main__":
    sys.exit(main())
