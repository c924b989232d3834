"""Collects triplets of spontaneous faces from people, in three steps:

    python -m nnlite.collect questions --data faces.h5 --out DIR     DIR/questions.csv, to be posted; DIR/key.h5
    python -m nnlite.collect simulate DIR                            DIR/answers.csv, by simulated workers
    python -m nnlite.collect votes DIR --answers DIR/answers.csv     DIR/triplets.h5, and who must be asked again

The sheets are CSV as Amazon Mechanical Turk takes and gives them (nnlite.data.collection says which columns). Where
questions lack valid answers, `votes` writes DIR/again-1.csv; its answers are counted by giving both answer sheets.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from nnlite.data import collection, landmarks
from nnlite import command
from nnlite.data import triplets as triplet_files
from nnlite.errors import expected


def main(argv=None):
    """The command; returns the exit code: 0, or 2 after one sentence about bad input."""
    args = _arguments().parse_args(argv)
    return command.run(lambda: work(args))


def work(args):
    if getattr(args, "seed", 0) < 0:
        raise expected("--seed", "0 or more", args.seed)
    args.step(args)
    return 0


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m nnlite.collect", description=__doc__.split("\n", 1)[0])
    steps = parser.add_subparsers(required=True, metavar="questions|simulate|votes")

    step = steps.add_parser("questions", help="choose images and questions, write the sheet to be posted")
    step.add_argument("--data", metavar="FILE", help="spontaneous landmarks (default: the built-in synthetic set)")
    step.add_argument("--out", metavar="DIR", required=True, help="folder for questions.csv and key.h5")
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(step=questions)

    step = steps.add_parser("simulate", help="answer a sheet by simulated workers")
    step.add_argument("folder", metavar="DIR")
    step.add_argument("--sheet", metavar="FILE", help="default: DIR/questions.csv; again-1.csv gives answers-1.csv")
    step.add_argument("--seed", type=int, default=0)
    step.set_defaults(step=simulate)

    step = steps.add_parser("votes", help="filter the workers, count the votes, write the triplets")
    step.add_argument("folder", metavar="DIR")
    step.add_argument("--answers", metavar="FILE", nargs="+", required=True, help="answer sheets, oldest first")
    step.set_defaults(step=votes)
    return parser


def questions(args):
    """Writes DIR/key.h5 and DIR/questions.csv."""
    out = Path(args.out)
    key, sheet = out / "key.h5", out / "questions.csv"
    for path in (key, sheet):
        if path.exists():
            raise expected(out, "a folder without a collection", f"one with {path.name}")
    faces = landmarks.prepare(_landmarks(args.data))
    asked = collection.ask(faces, args.seed)
    sets, assignments = collection.hits(
        asked, np.full(len(asked.rows), collection.VOTES), np.random.default_rng([args.seed, 1]))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise expected(out, "a folder that can be made", error.strerror) from error
    collection.write_key(key, asked)
    collection.write_sheet(sheet, asked, sets, assignments)
    one = int(asked.one_person.sum())
    print(f"{len(asked.images)} images, {len(asked.rows)} questions: {one} about one person, "
          f"{len(asked.rows) - one} about three")
    if len(asked.incomplete):
        print(f"{len(asked.incomplete)} images stand in fewer than 3 + 3 questions: their person has fewer than 3 of "
              "them, or more than half as many as all others of the split")
    print(f"{sheet}: {len(sets)} HITs of {collection.PER_HIT} questions and one of {len(asked.test)} test questions, "
          f"each for {collection.VOTES} workers")


def _landmarks(path):
    if path is None:
        from nnlite.data import synthetic  # imported only when it is needed

        return synthetic.spontaneous()
    result = landmarks.read(path)
    if result.kind != "spontaneous":
        raise expected(path, "a spontaneous set, with action units", f"a {result.kind} one")
    return result


def simulate(args):
    """Answers a sheet by simulated workers: questions.csv -> answers.csv, again-1.csv -> answers-1.csv."""
    folder = Path(args.folder)
    sheet = Path(args.sheet) if args.sheet else folder / "questions.csv"
    batch = sheet.stem.removeprefix("questions").removeprefix("again")
    path = folder / f"answers{batch}.csv"
    if path.exists():
        raise expected(path, "no such file yet", "one, which may hold people's answers")
    asked = collection.read_key(folder / "key.h5")
    sets, assignments = collection.read_sheet(sheet, asked)
    name = f"{collection.SIMULATED}{batch.strip('-') or 0}-{args.seed}"
    rng = np.random.default_rng([args.seed, *batch.encode()])
    answers, hit = collection.simulate(asked, sets, assignments, rng, f"{name}-")
    collection.write_answers(path, asked, answers, hit, name)
    print(f"{path}: {len(hit)} assignments by {len(np.unique(answers.worker))} simulated workers, not by people")


def votes(args):
    """Writes DIR/triplets.h5, and a sheet of what must be asked again; prints agreement and workers."""
    folder = Path(args.folder)
    asked = collection.read_key(folder / "key.h5")
    answers = collection.read_answers(args.answers, asked)
    counted = collection.count_votes(asked, answers)
    simulated = int(np.char.startswith(counted.worker, collection.SIMULATED).sum())
    source = f"{len(counted.worker)} workers, {simulated} of them simulated"
    triplet_files.write(folder / "triplets.h5", collection.triplets(asked, counted), source=source)
    print("\n".join(collection.agreement(asked, counted)))
    print(f"\n{source}; {int(counted.trusted.sum())} were right on at least 75 % of their test questions, "
          f"and only their answers count ({int(counted.right.sum())} of {int(counted.asked.sum())} right over all)")
    lacking = counted.lacking
    print(f"{folder / 'triplets.h5'}: {int((lacking == 0).sum())} triplets of {len(lacking)} questions")
    if lacking.any():
        sheet = folder / f"again-{len(args.answers)}.csv"
        sets, assignments = collection.hits(asked, lacking, np.random.default_rng([len(args.answers), 2]))
        collection.write_sheet(sheet, asked, sets, assignments)
        print(f"{sheet}: {int((lacking > 0).sum())} questions lack {int(lacking.sum())} valid answers; "
              f"{len(sets)} HITs to post again, {int(assignments.sum())} assignments")


if __name__ == "__main__":
    sys.exit(main())
