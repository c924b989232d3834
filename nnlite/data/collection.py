"""Collecting triplets of spontaneous faces from people: which images, which questions, whose answers count.

A question shows a reference and two faces A and B: which of them is more like the reference? `ask` chooses the
questions, `hits` bundles them into sets for Amazon Mechanical Turk, `count_votes` filters the workers and counts,
`triplets` keeps majority and margin. `simulate` stands in where no people are at hand; `collected_splits` is the whole
way with simulated workers. The sheets are CSV as Mechanical Turk takes them in (batch input, one HIT a line) and gives
them out (batch results, one assignment a line); `write_sheet` and `read_answers` say which columns.
"""

import csv
import itertools
from dataclasses import dataclass

import h5py
import numpy as np

from nnlite.data.landmarks import blinking
from nnlite.data.triplets import SPLITS, Triplets
from nnlite.errors import expected
from nnlite.files import dataset, opened, replacing

PER_HIT = 19  # questions in a set, beside one test question
TESTS = 17  # different test questions
VOTES = 5  # valid answers that a question needs; odd, so that there is a majority
TRIES, RESTARTS = 300, 20  # see `arrange`

A, B, BLANK = 0, 1, -1  # a choice; a test question's right answer is A or B

# The sheets.
PLACES = range(1, PER_HIT + 2)  # of the 19 questions and the test question in a HIT
IMAGES = ("reference", "a", "b")
CHOICES = {"A": A, "B": B, "": BLANK}
STATUSES = ("Submitted", "Approved", "Rejected")

# Simulated workers; see `simulate`. The two temperatures make 5 : 0, 4 : 1 and 3 : 2 about equally frequent, with more
# agreement about one person's images, as in the published table of agreement.
TEMPERATURE = {"one person": 0.5, "different persons": 0.6}
LAPSE = 0.03  # share of answers by accident
CARELESS = 0.1  # share of workers who answer without looking
HITS_PER_WORKER = 20
SIMULATED = "SIMULATED-"  # begins the WorkerId of simulated workers


@dataclass(frozen=True)
class Questions:
    """T questions, the test questions, and what is needed to judge and simulate the answers.

    rows (T, 3) int32: reference, A, B (rows of Faces.x); split (T,) int8 into SPLITS; one_person (T,) bool: all three
    images of one person, else of three; test (K, 3) int32 and right (K,) int8 (A or B): the test questions;
    images (I,) int32 sorted rows with their action units au (I, U) int8; incomplete (m,) int32: images that could not
    have 3 + 3 questions.
    """

    rows: np.ndarray
    split: np.ndarray
    one_person: np.ndarray
    test: np.ndarray
    right: np.ndarray
    images: np.ndarray
    au: np.ndarray
    incomplete: np.ndarray


@dataclass(frozen=True)
class Answers:
    """M assignments of a HIT with Q questions: worker (M,) names; question (M, Q) int32, an index into
    Questions.rows or -1 - k for test question k; choice (M, Q) int8, A, B or BLANK."""

    worker: np.ndarray
    question: np.ndarray
    choice: np.ndarray


@dataclass(frozen=True)
class Votes:
    """What the answers say. votes (T, 2) int: valid ones for A and for B, VOTES together at most; worker (W,) names,
    asked and right (W,): their test questions, trusted (W,) bool: whether their answers are valid."""

    votes: np.ndarray
    worker: np.ndarray
    asked: np.ndarray
    right: np.ndarray
    trusted: np.ndarray

    @property
    def lacking(self):
        """(T,) valid answers that each question still needs."""
        return VOTES - self.votes.sum(axis=1)


# -- which images, which questions ------------------------------------------------------------------------------------


def ask(faces, seed=0):
    """Questions about a spontaneous set: `candidates` of each split, `select`ed apart, and the test questions."""
    landmarks = faces.landmarks
    if landmarks.kind != "spontaneous":
        raise expected("collected triplets", "a spontaneous set, with action units", f"a {landmarks.kind} one")
    rng = np.random.default_rng(seed)
    blinks = blinking(landmarks)
    images = [candidates(landmarks, faces.split[name], blinks) for name in SPLITS]
    parts = [select(rows, landmarks.person[rows], rng) for rows in images]
    rows, one_person, incomplete = (np.concatenate(part) for part in zip(*parts))
    if not len(rows):
        raise expected("collected triplets", "a person with three different expressions without a blink", "none")
    split = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(part[0]) for part in parts])
    images = np.sort(np.concatenate(images))
    test, right = obvious(images, landmarks.au[images], landmarks.person[images], rows, rng)
    return Questions(rows, split, one_person, test, right, images, landmarks.au[images], incomplete)


def candidates(landmarks, rows, blinks):
    """Sorted rows (of `rows`) worth showing: no blink, every action unit coded, one for each vector of units a person.

    blinks (n,) bool. Of the frames that share person and vector the middle one stands for them: the first and last
    are where a movement begins and ends.
    """
    rows = np.asarray(rows)
    rows = rows[~blinks[rows] & (landmarks.au[rows] >= 0).all(axis=1)]
    key = np.column_stack([landmarks.person[rows], landmarks.au[rows]])
    _, group, count = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(group.ravel(), kind="stable")
    middle = np.cumsum(count) - count + (count - 1) // 2
    return np.sort(rows[order[middle]]).astype(np.int32)


def select(images, person, rng):
    """Questions in which every image stands 3 times with its own person and 3 times with three different persons.

    images (n,), person (n,). Returns rows (T, 3) int32, one_person (T,) bool, incomplete (m,) int32. T = 6 n / 3 where
    all goes well. Persons with fewer than 3 images have no questions about one person; where a person has more images
    than half of all others', the surplus, drawn at random, has none about different persons (with fewer than three
    persons nobody has). Such images are `incomplete`; what is left of their questions is asked.
    """
    _, label, count = np.unique(person, return_inverse=True, return_counts=True)
    own = np.flatnonzero(count[label] >= 3)
    mixed = _mixable(label, rng)
    one = own[arrange(np.arange(len(own)), label[own], rng)]
    different = mixed[arrange(label[mixed], np.zeros(len(mixed), int), rng)]
    rows = images[np.concatenate([one, different])].astype(np.int32)
    complete = np.intersect1d(own, mixed)
    incomplete = np.delete(images, complete).astype(np.int32)
    return rows, np.repeat([True, False], [len(one), len(different)]), incomplete


def _mixable(label, rng):
    """Sorted indices of as many images as fit into triplets of three persons: no label more than half of the rest."""
    chosen = np.arange(len(label))
    while len(chosen):
        count = np.bincount(label[chosen])
        most, limit = count.argmax(), (len(chosen) - count.max()) // 2
        if count.max() <= limit:
            break
        largest = chosen[label[chosen] == most]
        chosen = np.sort(np.concatenate([chosen[label[chosen] != most], rng.permutation(largest)[:limit]]))
    return chosen


def arrange(label, block, rng):
    """(n, 3) indices: every item once in each column; in a row three different labels, all of one block.

    Greedy with restarts: the columns are drawn at random within the blocks, then every row in conflict (a label
    twice, or the same three items as another row) exchanges an item with a random row of its block such that neither
    is in conflict. A block where TRIES do not find such a row is drawn anew. After RESTARTS it is taken from a circle
    ordered by label, which fits wherever no label holds more than a third of a block of three or more; rows may then
    share their three items, with another one as the reference.
    """
    result = np.tile(np.arange(len(label))[:, None], 3)  # (n, 3)
    by_block = np.argsort(block, kind="stable")
    redo = np.ones(len(label), bool)  # rows of blocks without a solution yet
    for _ in range(RESTARTS):
        for column in (1, 2):
            drawn = np.lexsort((rng.random(len(label)), block))
            result[by_block[redo[by_block]], column] = drawn[redo[by_block]]
        redo = np.isin(block, block[_repair(result, label, block, rng)])
        if not redo.any():
            return result
    for name in np.unique(block[redo]):
        rows = np.flatnonzero(block == name)
        circle = rows[np.lexsort((rng.random(len(rows)), label[rows]))]
        third = len(rows) // 3
        result[circle] = np.stack([circle, np.roll(circle, -third), np.roll(circle, -2 * third)], axis=1)
    return result


def _repair(result, label, block, rng):
    """Exchanges conflicts away in place; returns the rows for which that failed."""
    label, rows = label.tolist(), result.tolist()
    by_block = np.argsort(block, kind="stable")
    start, end = (np.searchsorted(block[by_block], block, side=side) for side in ("left", "right"))
    owner = {}  # three items -> the row that holds them; rows in conflict own nothing

    def may_own(items, *claimants):
        return len({label[item] for item in items}) == 3 and owner.get(frozenset(items)) in (None, *claimants)

    for row, items in enumerate(rows):
        if may_own(items):
            owner[frozenset(items)] = row
    failed = []
    for row in [row for row, items in enumerate(rows) if owner.get(frozenset(items)) != row]:
        if owner.get(frozenset(rows[row])) == row:
            continue  # cured by an earlier exchange
        for partner in by_block[rng.integers(start[row], end[row], size=TRIES)].tolist():
            one, two = rows[row].copy(), rows[partner].copy()
            column = int(rng.integers(1, 3))
            one[column], two[column] = two[column], one[column]
            if set(one) != set(two) and may_own(one, partner) and may_own(two, partner):
                if owner.get(frozenset(rows[partner])) == partner:
                    del owner[frozenset(rows[partner])]
                owner[frozenset(one)], owner[frozenset(two)] = row, partner
                rows[row], rows[partner] = one, two
                break
        else:
            failed.append(row)
    result[:] = np.reshape(rows, result.shape)
    return failed


def obvious(images, au, person, rows, rng):
    """Test questions (K, 3) int32 and their right answers (K,) int8, K = TESTS or as many as there are.

    Reference, near and far face of one person: near differs in the fewest action units, far in the most, and the
    questions with the widest gap between the two are taken, as evenly from the persons as it goes. None of them is
    among the questions `rows` (T, 3).
    """
    found = []  # (gap, reference, near, far)
    for name in np.unique(person):
        own = np.flatnonzero(person == name)
        if len(own) < 3:
            continue
        apart = (au[own, None] != au[own]).sum(axis=2)  # (m, m), number of units that differ
        far = apart.argmax(axis=1)
        gap = apart.max(axis=1)
        np.fill_diagonal(apart, au.shape[1] + 1)
        near = apart.argmin(axis=1)
        gap = gap - apart.min(axis=1)
        best = np.lexsort((rng.random(len(own)), -gap))[:TESTS]
        found += [(rank, -gap[i], *images[own[[i, near[i], far[i]]]]) for rank, i in enumerate(best) if gap[i] > 0]
    asked = {(a, frozenset((b, c))) for a, b, c in rows.tolist()}
    found = [f[2:] for f in sorted(found) if (f[2], frozenset(f[3:])) not in asked][:TESTS]
    if not found:
        raise expected("test questions", "a person with an expression like another and unlike a third", "none")
    test = np.array(found, np.int32)
    right = rng.integers(2, size=len(test)).astype(np.int8)
    test[right == B, 1:] = test[right == B, :0:-1]
    return test, right


# -- sets of questions ------------------------------------------------------------------------------------------------


def hits(questions, lacking, rng):
    """Sets for all questions that lack answers: question (S, Q) as in Answers, assignments (S,) workers for each set.

    PER_HIT questions and one random test question, shuffled; questions that lack equally many answers stay together.
    The last set is filled up with other questions, whose surplus answers `count_votes` leaves aside.
    """
    open_questions = rng.permutation(np.flatnonzero(lacking > 0))
    open_questions = open_questions[np.argsort(-lacking[open_questions], kind="stable")]
    spare = -len(open_questions) % PER_HIT
    last = open_questions[len(open_questions) + spare - PER_HIT:] if spare else open_questions[:0]
    others = np.setdiff1d(np.arange(len(lacking)), last)
    if len(others) < spare:  # fewer questions than a set holds: some come twice, and count once
        others = np.arange(len(lacking))
    filling = rng.choice(others, spare, replace=len(others) < spare)
    assignments = lacking[open_questions[::PER_HIT]]
    sets = np.concatenate([open_questions, filling]).reshape(-1, PER_HIT)
    test = -1 - rng.integers(len(questions.test), size=(len(sets), 1))
    return rng.permuted(np.concatenate([sets, test], axis=1), axis=1).astype(np.int32), assignments


# -- whose answers count ----------------------------------------------------------------------------------------------


def count_votes(questions, answers):
    """The valid Votes: of workers right on at least 75 % of the test questions they were asked (blank is wrong).

    Each worker counts once a question, and each question takes the first VOTES valid answers, in the order of
    `answers`, so that questions that were asked too often keep an odd number of votes.
    """
    names, worker = np.unique(answers.worker, return_inverse=True)
    is_test = answers.question < 0
    correct = is_test & (answers.choice == questions.right[np.where(is_test, -1 - answers.question, 0)])
    asked = np.bincount(worker, is_test.sum(axis=1), minlength=len(names)).astype(int)
    right = np.bincount(worker, correct.sum(axis=1), minlength=len(names)).astype(int)
    trusted = (4 * right >= 3 * asked) & (asked > 0)
    valid = ~is_test & (answers.choice != BLANK) & trusted[worker][:, None]
    question, choice = answers.question[valid], answers.choice[valid]  # in the order of the answers
    who = np.repeat(worker, valid.sum(axis=1))
    _, first = np.unique(question * np.int64(max(len(names), 1)) + who, return_index=True)
    first = first[np.lexsort((first, question[first]))]  # by question, then by order
    question, choice = question[first], choice[first]
    counted = np.arange(len(first)) - np.searchsorted(question, question) < VOTES
    votes = np.zeros((len(questions.rows), 2), int)
    np.add.at(votes, (question[counted], choice[counted]), 1)
    return Votes(votes, names, asked, right, trusted)


def triplets(questions, votes):
    """split -> Triplets: of every question with VOTES valid answers, the majority's; weight = difference of votes."""
    a, b = votes.votes.T
    done = votes.lacking == 0
    rows = np.where((a >= b)[:, None], questions.rows, questions.rows[:, [0, 2, 1]])
    weight = np.abs(a - b).astype(np.float32)
    parts = {name: done & (questions.split == index) for index, name in enumerate(SPLITS)}
    return {name: Triplets(rows[part], weight[part]) for name, part in parts.items()}


def agreement(questions, votes):
    """Lines of text: how many triplets have vote difference 5, 3 and 1, by split and by kind of question."""
    a, b = votes.votes.T
    done = votes.lacking == 0
    lines = ["vote difference" + "".join(f"{head:>8}" for head in ("5", "3", "1", "total"))]
    groups = [(name, questions.split == index) for index, name in enumerate(SPLITS)]
    for name, part in groups + [("all", np.ones(len(a), bool))]:
        for title, kind in (
            (name, True), ("  one person", questions.one_person), ("  different", ~questions.one_person)
        ):
            counts = [int((part & done & kind & (abs(a - b) == margin)).sum()) for margin in (5, 3, 1)]
            lines.append(f"{title:<15}" + "".join(f"{count:8d}" for count in (*counts, sum(counts))))
    return lines


# -- simulated workers ------------------------------------------------------------------------------------------------


def simulate(questions, sets, assignments, rng, prefix=SIMULATED):
    """Answers of made-up workers (S sets, `assignments` different workers each), who compare action units.

    With u = (units that differ between reference and B) - (the same for A), divided by its root mean square over all
    questions, a worker answers A with probability 1 / (1 + exp(-u / TEMPERATURE)), by accident (LAPSE) at random. A
    share CARELESS of the workers always answers at random. Some work much more than others (log-normal).
    """
    number = max(2 * VOTES, int(assignments.sum()) // HITS_PER_WORKER)
    careless = rng.permutation(number) < round(CARELESS * number)
    # the largest log(weight) + Gumbel noise: a draw of different workers in proportion to their weights
    appetite = rng.normal(size=number) + rng.gumbel(size=(len(sets), number))
    chosen = np.argpartition(-appetite, VOTES, axis=1)[:, :VOTES]
    hit, slot = np.nonzero(np.arange(VOTES) < assignments[:, None])
    worker, question = chosen[hit, slot], sets[hit]  # (M,), (M, Q)
    sure = 1 / (1 + np.exp(-_preference(questions)[question]))
    sure = np.where(careless[worker][:, None] | (rng.random(sure.shape) < LAPSE), 0.5, sure)
    choice = np.where(rng.random(sure.shape) < sure, A, B).astype(np.int8)
    return Answers(np.array([f"{prefix}{name:04d}" for name in worker]), question, choice), hit


def _preference(questions):
    """(T + K,) log odds of A over B, indexed as Answers.question: test question k stands at -1 - k."""
    rows = np.concatenate([questions.rows, questions.test[::-1]])
    au = questions.au[np.searchsorted(questions.images, rows)]  # (T + K, 3, U)
    u = (au[:, 2] != au[:, 0]).sum(axis=1) - (au[:, 1] != au[:, 0]).sum(axis=1)
    scale = np.sqrt(np.mean(np.square(u[:len(questions.rows)]))) or 1.0
    one_person = np.concatenate([questions.one_person, np.ones(len(questions.test), bool)])
    return u / scale / np.where(one_person, TEMPERATURE["one person"], TEMPERATURE["different persons"])


def collected_splits(faces, seed=0):
    """"train", "validation", "test" -> Triplets of a spontaneous set, the answers by simulated workers.

    The whole way: `ask`, then HITs to ever new workers until every question has its VOTES valid answers.
    """
    questions = ask(faces, seed)
    rng = np.random.default_rng([seed, 1])
    answers = Answers(np.empty(0, "U1"), np.empty((0, PER_HIT + 1), np.int32), np.empty((0, PER_HIT + 1), np.int8))
    for number in itertools.count():
        votes = count_votes(questions, answers)
        if not votes.lacking.any():
            return triplets(questions, votes)
        new, _ = simulate(questions, *hits(questions, votes.lacking, rng), rng, f"{SIMULATED}{number}-")
        answers = joined([answers, new])


def joined(parts):
    """Several Answers as one, in order."""
    return Answers(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("worker", "question", "choice")))


# -- sheets and the key -----------------------------------------------------------------------------------------------

def picture(row):
    """The name under which a sheet speaks of the face in this row."""
    return f"face-{row:06d}.png"


def write_sheet(path, questions, sets, assignments):
    """Writes HITs as a batch input of Amazon Mechanical Turk: a line each.

    Columns: set (its number), assignments (how many workers are to answer it; a batch has one such number, so lines
    with different ones go out as different batches), and for each of the 20 questions reference_1, a_1, b_1 …: the
    pictures' names. The HIT's form has one radio button group a question, named q1 … q20, with values A and B.
    """
    rows = np.concatenate([questions.rows, questions.test[::-1]])  # indexed as Answers.question
    lines = [[number, int(wanted), *map(picture, rows[question].ravel().tolist())]
             for number, (question, wanted) in enumerate(zip(sets, assignments), 1)]
    _write_csv(path, ["set", "assignments", *_columns("")], lines)


def write_answers(path, questions, answers, hit, batch):
    """Writes answers as a batch result of Amazon Mechanical Turk; hit (M,): the set that each assignment is of.

    `batch` makes the identifiers of HITs and assignments differ from those of other batches.
    """
    rows = np.concatenate([questions.rows, questions.test[::-1]])
    letter = {A: "A", B: "B", BLANK: ""}
    lines = [
        [f"{batch}-{number + 1}", f"{batch}-{number + 1}-{index}", worker, "Submitted",
         *map(picture, rows[question].ravel().tolist()), *(letter[c] for c in choice.tolist())]
        for index, (number, worker, question, choice) in enumerate(
            zip(hit.tolist(), answers.worker, answers.question, answers.choice))
    ]
    header = ["HITId", "AssignmentId", "WorkerId", "AssignmentStatus", *_columns("Input."), *_answer_columns()]
    _write_csv(path, header, lines)


def read_sheet(path, questions):
    """sets (S, Q), assignments (S,) as `hits` gives them, from the sheet at `path`."""
    sets, assignments = [], []
    number_of = _numbers(questions)
    for line, cells in _read_csv(path, ["assignments", *_columns("")]):
        wanted = cells["assignments"]
        if wanted not in {str(n) for n in range(1, VOTES + 1)}:
            raise expected(_cell(path, line, "assignments"), f"a number from 1 to {VOTES}", repr(wanted[:40]))
        assignments.append(int(wanted))
        sets.append(_questions(path, line, cells, "", number_of))
    return np.array(sets, np.int32), np.array(assignments)


def read_answers(paths, questions):
    """Answers from batch results of Amazon Mechanical Turk, in the order of files and lines.

    Needed columns, in any order and beside any others: HITId, AssignmentId, WorkerId, AssignmentStatus, those of the
    sheet with `Input.` before them, and Answer.q1 … Answer.q20 with A, B or nothing. Assignments that the requester
    rejected do not count. Raises NnliteError, one sentence with file, line and column, for anything else.
    """
    number_of, seen = _numbers(questions), {}  # seen: identifier of an assignment -> where it stands
    worker, question, choice = [], [], []
    columns = ["HITId", "AssignmentId", "WorkerId", "AssignmentStatus", *_columns("Input."), *_answer_columns()]
    for path in paths:
        for line, cells in _read_csv(path, columns):
            for name in ("HITId", "AssignmentId", "WorkerId"):
                if not cells[name]:
                    raise expected(_cell(path, line, name), "an identifier", "nothing")
            name = cells["AssignmentId"]
            if name in seen:
                got = f"'{name[:40]}' of {seen[name]} again"
                raise expected(_cell(path, line, "AssignmentId"), "an assignment of its own", got)
            seen[name] = f"{path} line {line}"
            if cells["AssignmentStatus"] not in STATUSES:
                what = " or ".join((", ".join(STATUSES[:-1]), STATUSES[-1]))
                raise expected(_cell(path, line, "AssignmentStatus"), what, repr(cells["AssignmentStatus"][:40]))
            asked = _questions(path, line, cells, "Input.", number_of)
            given = [_choice(path, line, name, cells[name]) for name in _answer_columns()]
            if cells["AssignmentStatus"] != "Rejected":
                worker.append(cells["WorkerId"])
                question.append(asked)
                choice.append(given)
    shape = (len(worker), len(PLACES))
    return Answers(np.array(worker, dtype=str), np.array(question, np.int32).reshape(shape),
                   np.array(choice, np.int8).reshape(shape))


def write_key(path, questions):
    """Writes the Questions as HDF5, a dataset for each field: what `read_answers` and `triplets` need later."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, values in vars(questions).items():
            file[name] = values


def read_key(path):
    """The Questions that `write_key` wrote; NnliteError for a missing, damaged or foreign file."""
    def three(shape):
        return len(shape) == 2 and shape[0] > 0 and shape[1] == 3

    with opened(path, "a key that the command 'questions' wrote") as file:
        rows = dataset(file, path, "rows", "i", "integers (T, 3)", three)
        t = len(rows)
        split = dataset(file, path, "split", "i", f"integers ({t},)", lambda shape: shape == (t,))
        one_person = dataset(file, path, "one_person", "b", f"booleans ({t},)", lambda shape: shape == (t,))
        test = dataset(file, path, "test", "i", "integers (K, 3)", three)
        k = len(test)
        right = dataset(file, path, "right", "i", f"integers ({k},)", lambda shape: shape == (k,))
        images = dataset(file, path, "images", "i", "integers (I,)", lambda shape: len(shape) == 1)
        n = len(images)
        au = dataset(file, path, "au", "i", f"integers ({n}, U)", lambda shape: len(shape) == 2 and shape[0] == n)
        incomplete = dataset(file, path, "incomplete", "i", "integers (m,)", lambda shape: len(shape) == 1)
    for name, values, allowed in (("split", split, range(len(SPLITS))), ("right", right, (A, B)),
                                  ("rows", rows, images), ("test", test, images)):
        strange = values[~np.isin(values, allowed)]
        if len(strange):
            raise expected(path, f"in '{name}' {'rows of images' if allowed is images else tuple(allowed)}", strange[0])
    return Questions(rows, split, one_person, test, right, images, au, incomplete)


def _columns(prefix):
    return [f"{prefix}{image}_{place}" for place in PLACES for image in IMAGES]


def _answer_columns():
    return [f"Answer.q{place}" for place in PLACES]


def _numbers(questions):
    """The names of three pictures -> the number of their question, as in Answers."""
    numbered = itertools.chain(enumerate(questions.rows.tolist()),
                               ((-1 - k, rows) for k, rows in enumerate(questions.test.tolist())))
    return {tuple(map(picture, rows)): number for number, rows in numbered}


def _questions(path, line, cells, prefix, number_of):
    result = []
    for place in PLACES:
        names = tuple(cells[f"{prefix}{image}_{place}"] for image in IMAGES)
        if names not in number_of:
            what = f"reference, A and B of one of the {len(number_of)} questions"
            raise expected(_cell(path, line, f"{prefix}reference_{place}"), what, ", ".join(n[:40] for n in names))
        result.append(number_of[names])
    return result


def _choice(path, line, name, text):
    if text not in CHOICES:
        raise expected(_cell(path, line, name), "A, B or nothing", repr(text[:40]))
    return CHOICES[text]


def _cell(path, line, name):
    return f"{path} line {line} column '{name}'"


def _write_csv(path, header, lines):
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])


def _read_csv(path, columns):
    """(line number, column -> text) for every line of a CSV file that has at least these columns; spaces stripped."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte order mark in front
            yield from _lines(path, csv.reader(file, strict=True), columns)
    except OSError as error:
        raise expected(path, "a CSV file that can be read", error.strerror or "none") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise expected(path, "CSV text in UTF-8", str(error)) from error


def _lines(path, reader, columns):
    header = [name.strip() for name in next(reader, [])]
    for name in columns:
        if header.count(name) != 1:
            raise expected(f"{path} line 1", f"one column '{name}'", header.count(name) or "none")
    start, count = reader.line_num + 1, 0
    for cells in reader:
        if cells:  # not an empty line
            if len(cells) != len(header):
                raise expected(f"{path} line {start}", f"{len(header)} columns, up to '{header[-1]}'", len(cells))
            yield start, dict(zip(header, map(str.strip, cells)))
            count += 1
        start = reader.line_num + 1
    if not count:
        raise expected(path, "at least one line under the header", "none")
