"""The collection of triplets: choice of images and questions, sheets, worker filter, votes, the command."""

import csv
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nnlite import collect
from nnlite.data import collection, triplets
from nnlite.data import landmarks as marks
from nnlite.data.collection import Answers, Questions
from nnlite.errors import NnliteError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
UNITS = 6


def spontaneous(frames=25, persons=24, seed=0):
    """A spontaneous set: random action units, some frames not fully coded, some with closed lids, all else noise."""
    rng = np.random.default_rng(seed)
    n = frames * persons
    person = np.repeat(np.arange(persons, dtype=np.int32) * 7 + 3, frames)
    au = (rng.random((n, UNITS)) < 0.4).astype(np.int8)
    au[rng.random(n) < 0.1, 2] = -1
    au[::frames] = 0  # everybody has a neutral face
    blinks = rng.random(n) < 0.15
    points = rng.normal(scale=0.01, size=(n, 5, 3)).astype(np.float32)
    points[:, :, 0] += (-1, 1, -1, 1, 0)
    points[:, 2:4, 1] += np.where(blinks, 0.05, 0.5)[:, None]  # the upper lids
    return marks.LandmarkSet(
        points=points, person=person, source="test", units="none", lower_lids=((0,), (1,)), upper_lids=((2,), (3,)),
        au=au, au_numbers=tuple(range(1, UNITS + 1)), pose=np.zeros((n, 3), np.float32),
        task=np.zeros(n, np.int32), tasks=("any",), frame=np.arange(n, dtype=np.int32),
    )


def faces_of(landmarks):
    """Faces without preprocessing: half of the persons train, a quarter each validation and test."""
    person, index = np.unique(landmarks.person, return_inverse=True)
    half, quarter = len(person) // 2, len(person) * 3 // 4
    parts = {"train": index < half, "validation": (index >= half) & (index < quarter), "test": index >= quarter}
    x = landmarks.points.reshape(len(index), -1)
    return marks.Faces(x=x, neutral=np.zeros(len(x), np.int32), mean=np.zeros(x.shape[1], np.float32),
                       split={n: np.flatnonzero(p).astype(np.int32) for n, p in parts.items()}, landmarks=landmarks)


def recount(rows, person):
    """image -> [triplets with its own person, triplets with three different persons]; fails on any other triplet."""
    count = {}
    for a, b, c in rows:
        assert len({a, b, c}) == 3
        persons = {person[a], person[b], person[c]}
        assert len(persons) in (1, 3), "two persons in a triplet"
        for image in (a, b, c):
            count.setdefault(image, [0, 0])[len(persons) == 3] += 1
    return count


# -- choice -----------------------------------------------------------------------------------------------------------


def test_candidates_are_coded_without_blink_and_unique_per_person():
    landmarks = spontaneous()
    rows = np.flatnonzero(landmarks.person > 20)
    blinks = marks.blinking(landmarks)
    assert 0.05 < blinks.mean() < 0.3
    found = collection.candidates(landmarks, rows, blinks)
    wanted = {}  # (person, vector) -> rows, in order
    for row in rows.tolist():
        if not blinks[row] and -1 not in landmarks.au[row]:
            wanted.setdefault((landmarks.person[row], tuple(landmarks.au[row])), []).append(row)
    assert found.tolist() == sorted(same[(len(same) - 1) // 2] for same in wanted.values())
    assert any(len(same) > 2 for same in wanted.values())


def test_every_image_stands_in_three_and_three_triplets():
    faces = faces_of(spontaneous())
    questions = collection.ask(faces)
    person = faces.landmarks.person
    blinks = marks.blinking(faces.landmarks)
    assert not len(questions.incomplete)
    assert len(questions.rows) == 6 * len(questions.images) // 3
    for index, name in enumerate(triplets.SPLITS):
        rows = questions.rows[questions.split == index].tolist()
        count = recount(rows, person)
        assert set(count) == set(collection.candidates(faces.landmarks, faces.split[name], blinks).tolist())
        assert set(map(tuple, count.values())) == {(3, 3)}
    assert len({frozenset(row) for row in questions.rows.tolist()}) == len(questions.rows)
    for row, one in zip(questions.rows, questions.one_person):
        assert (len(set(person[row])) == 1) == one


@pytest.mark.parametrize("sizes", [
    (3, 3, 3), (4, 4, 4), (5, 5, 5), (9, 9, 9), (6, 4, 4, 4), (30, 25, 25, 10), (1, 1, 1), (3, 4, 5, 6, 7), (40,) * 5])
def test_tight_groups_are_complete_too(sizes):
    person = np.repeat(np.arange(len(sizes)), sizes)
    images = np.arange(len(person)) * 2 + 5
    rows, one, incomplete = collection.select(images, person, np.random.default_rng(1))
    count = recount(rows.tolist(), dict(zip(images.tolist(), person.tolist())))
    if min(sizes) >= 3:
        assert not len(incomplete) and set(map(tuple, count.values())) == {(3, 3)} and len(count) == len(images)
    questions = {(a, frozenset((b, c))) for a, b, c in rows.tolist()}
    assert len(questions) == len(rows)


def test_rows_of_small_blocks_share_no_three_items():
    block = np.repeat(np.arange(40), [4, 5, 6, 7] * 10)
    for seed in range(20):
        rows = collection.arrange(np.arange(len(block)), block, np.random.default_rng(seed))
        assert (np.sort(rows, axis=0) == np.arange(len(block))[:, None]).all()  # once in each column
        assert len({frozenset(row) for row in rows.tolist()}) == len(rows)
        assert all(len(set(row)) == 3 and len(set(block[row])) == 1 for row in rows)


@pytest.mark.parametrize("sizes, own, mixed", [
    ((2, 5, 5, 5), (0, 5, 5, 5), (2, 5, 5, 5)),  # too few for triplets of one person
    ((20, 4, 4), (20, 4, 4), (4, 4, 4)),  # too many for triplets of three
    ((20, 3), (20, 3), (0, 0)),  # nobody to mix with
    ((1, 1), (0, 0), (0, 0)),
    ((), (), ()),
])
def test_images_that_cannot_be_completed_are_reported(sizes, own, mixed):
    person = np.repeat(np.arange(len(sizes)), sizes)
    images = np.arange(len(person)) + 100
    rows, one, incomplete = collection.select(images, person, np.random.default_rng(0))
    of = dict(zip(images.tolist(), person.tolist()))
    count = recount(rows.tolist(), of)
    for index in range(len(sizes)):
        mine = [count.get(image, [0, 0]) for image in images[person == index].tolist()]
        assert Counter(m[0] for m in mine)[3] == own[index] and Counter(m[1] for m in mine)[3] == mixed[index]
        assert all(k in (0, 3) for m in mine for k in m)
    assert set(incomplete.tolist()) == {i for i in images.tolist() if count.get(i) != [3, 3]}


def test_test_questions_are_obvious_and_not_asked_otherwise():
    faces = faces_of(spontaneous())
    questions = collection.ask(faces)
    au, person = faces.landmarks.au.astype(int), faces.landmarks.person
    assert len(questions.test) == 17 and set(questions.right.tolist()) == {0, 1}
    asked = {(a, frozenset((b, c))) for a, b, c in questions.rows.tolist()}
    for (reference, *options), right in zip(questions.test.tolist(), questions.right):
        units = [np.abs(au[reference] - au[option]).sum() for option in options]
        own = questions.images[person[questions.images] == person[reference]]
        apart = [np.abs(au[reference] - au[other]).sum() for other in own if other != reference]
        assert units[right] == min(apart) and units[1 - right] == max(apart) > min(apart)
        assert (reference, frozenset(options)) not in asked
    assert max(Counter(person[questions.test[:, 0]].tolist()).values()) == 1


def test_hits_hold_every_open_question_once_and_one_test_question():
    questions = collection.ask(faces_of(spontaneous()))
    lacking = np.random.default_rng(0).integers(0, 6, len(questions.rows))
    sets, assignments = collection.hits(questions, lacking, np.random.default_rng(0))
    assert sets.shape[1] == 20 and ((sets < 0).sum(axis=1) == 1).all() and (sets >= -17).all()
    count = Counter(sets[sets >= 0].tolist())
    open_questions = np.flatnonzero(lacking)
    assert all(count[q] >= 1 for q in open_questions.tolist())
    assert sum(count.values()) - len(open_questions) == -len(open_questions) % 19
    for one in sets:
        assert len(set(one.tolist())) == 20
    for one, wanted in zip(sets[:-1], assignments):
        assert wanted == lacking[one[one >= 0]].max()
    assert assignments.tolist() == sorted(assignments.tolist(), reverse=True)
    assert np.unique(np.nonzero(sets < 0)[1]).size > 10  # the test question has no fixed place


def test_a_whole_collection_smaller_than_a_hit():
    questions = hand_made(5)
    sets, assignments = collection.hits(questions, np.full(5, 5), np.random.default_rng(0))
    assert sets.shape == (1, 20) and assignments.tolist() == [5]
    assert set(range(5)) <= set(sets[0].tolist())


# -- votes ------------------------------------------------------------------------------------------------------------


def hand_made(number=19, tests=4):
    """`number` questions, rows (3 i, 3 i + 1, 3 i + 2), the test questions behind them, A always right."""
    rows = np.arange(3 * (number + tests), dtype=np.int32).reshape(-1, 3)
    split = np.zeros(number, np.int8)
    split[-2:] = 1, 2
    return Questions(rows[:number], split, np.arange(number) % 2 == 0, rows[number:], np.zeros(tests, np.int8),
                     rows.ravel(), np.zeros((rows.size, UNITS), np.int8), np.empty(0, np.int32))


def assignment(worker, choices, test=0, test_choice=0):
    """One assignment of the hand-made HIT: questions 0 … 18 and then the test question."""
    return worker, [*range(19), -1 - test], [*choices, test_choice]


def answers_of(assignments):
    worker, question, choice = zip(*assignments)
    return Answers(np.array(worker), np.array(question, np.int32), np.array(choice, np.int8))


def test_majority_and_weight_from_hand_written_votes():
    questions = hand_made()
    columns = {0: "AAAAA", 1: "AAAAB", 2: "ABABA", 3: "BBAAB", 4: "BBBAB", 5: "BBBBB", 18: "BBBBA"}
    letters = [[columns.get(q, "AAAAA")[w] for q in range(19)] for w in range(5)]
    votes = collection.count_votes(
        questions, answers_of([assignment(f"w{w}", ["AB".index(c) for c in letters[w]]) for w in range(5)]))
    assert votes.votes[:6].tolist() == [[5, 0], [4, 1], [3, 2], [2, 3], [1, 4], [0, 5]]
    splits = collection.triplets(questions, votes)
    assert splits["train"].weight[:6].tolist() == [5, 3, 1, 1, 3, 5]
    wanted = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 11, 10], [12, 14, 13], [15, 17, 16]]
    assert splits["train"].rows[:6].tolist() == wanted
    assert splits["test"].rows.tolist() == [[54, 56, 55]] and splits["test"].weight.tolist() == [3]
    assert [len(splits[name].rows) for name in triplets.SPLITS] == [17, 1, 1]
    table = [line.split() for line in collection.agreement(questions, votes)]
    assert table[1] == ["train", "13", "2", "2", "17"]
    assert table[2] == ["one", "person", "7", "1", "1", "9"] and table[3] == ["different", "6", "1", "1", "8"]
    assert table[-3] == ["all", "14", "3", "2", "19"]


@pytest.mark.parametrize("right, trusted", [(4, True), (3, True), (2, False), (0, False)])
def test_the_filter_stands_at_exactly_75_percent(right, trusted):
    questions = hand_made()
    one = [assignment("judged", [1] * 19, k, 0 if k < right else 1) for k in range(4)]
    votes = collection.count_votes(questions, answers_of(one + [assignment("good", [0] * 19)]))
    assert votes.worker.tolist() == ["good", "judged"]
    assert votes.asked.tolist() == [1, 4] and votes.right.tolist() == [1, right]
    assert votes.trusted.tolist() == [True, trusted]
    assert votes.votes.tolist() == [[1, int(trusted)]] * 19  # four assignments of one worker count once
    assert votes.lacking.tolist() == [4 - trusted] * 19


def test_a_blank_test_answer_is_wrong_and_other_blanks_are_no_vote():
    questions = hand_made()
    votes = collection.count_votes(questions, answers_of([
        assignment("blank", [0] * 19, 0, -1), assignment("good", [-1] + [0] * 18, 0, 0)]))
    assert votes.trusted.tolist() == [False, True]
    assert votes.votes.tolist() == [[0, 0]] + [[1, 0]] * 18


def test_the_first_five_valid_answers_count_and_fewer_make_no_triplet():
    questions = hand_made()
    crowd = [assignment("bad", [0] * 19, 0, 1)] + [assignment(f"w{9 - w}", [int(w < 3)] * 19) for w in range(8)]
    votes = collection.count_votes(questions, answers_of(crowd))
    assert votes.votes.tolist() == [[2, 3]] * 19 and not votes.lacking.any()
    votes = collection.count_votes(questions, answers_of(crowd[:5]))
    assert votes.lacking.tolist() == [1] * 19
    assert all(len(t.rows) == 0 for t in collection.triplets(questions, votes).values())


def test_votes_against_a_naive_count():
    questions = collection.ask(faces_of(spontaneous()))
    rng = np.random.default_rng(0)
    sets, assignments = collection.hits(questions, np.full(len(questions.rows), 5), rng)
    first, _ = collection.simulate(questions, sets, assignments, rng)
    again, _ = collection.simulate(questions, sets[::3], assignments[::3], rng)  # the same workers once more
    answers = collection.joined([first, again])
    votes = collection.count_votes(questions, answers)
    tests = {}
    for worker, asked, given in zip(answers.worker, answers.question.tolist(), answers.choice.tolist()):
        tests.setdefault(worker, []).extend(g == questions.right[-1 - q] for q, g in zip(asked, given) if q < 0)
    valid = {}
    for worker, asked, given in zip(answers.worker, answers.question.tolist(), answers.choice.tolist()):
        if sum(tests[worker]) / len(tests[worker]) >= 0.75:
            for q, g in zip(asked, given):
                if q >= 0:
                    valid.setdefault(q, {}).setdefault(worker, g)
    for q in range(len(questions.rows)):
        kept = list(valid.get(q, {}).values())[:5]
        assert votes.votes[q].tolist() == [kept.count(0), kept.count(1)]
    assert 0 < votes.trusted.sum() < len(votes.trusted)


# -- simulated workers ------------------------------------------------------------------------------------------------


def test_simulated_workers_are_different_in_a_hit_and_follow_the_units():
    questions = collection.ask(faces_of(spontaneous()))
    rng = np.random.default_rng(0)
    sets, assignments = collection.hits(questions, np.full(len(questions.rows), 5), rng)
    answers, hit = collection.simulate(questions, sets, assignments, rng)
    for number in range(len(sets)):
        mine = answers.worker[hit == number]
        assert len(mine) == len(set(mine)) == assignments[number]
        assert (answers.question[hit == number] == sets[number]).all()
    au = questions.au[np.searchsorted(questions.images, questions.rows)]
    apart = np.abs(au[:, 1:].astype(int) - au[:, :1]).sum(axis=2)  # (T, 2)
    clear = np.abs(apart[:, 0] - apart[:, 1]) >= 3
    splits = np.array([apart[q].argmin() == c for asked, given in zip(answers.question, answers.choice)
                       for q, c in zip(asked, given) if q >= 0 and clear[q]])
    assert 0.85 < splits.mean() < 0.99
    votes = collection.count_votes(questions, answers)
    assert 0.75 < votes.trusted.mean() < 0.98
    right = votes.right / votes.asked
    assert right[votes.asked >= 8].min() < 0.75 < np.median(right)


def test_collected_splits_are_complete_and_repeatable():
    faces = faces_of(spontaneous())
    splits = collection.collected_splits(faces, seed=1)
    questions = collection.ask(faces, seed=1)
    for index, name in enumerate(triplets.SPLITS):
        found = splits[name]
        asked = questions.rows[questions.split == index]
        assert sorted(map(sorted, found.rows.tolist())) == sorted(map(sorted, asked.tolist()))
        assert set(found.weight.tolist()) == {1, 3, 5} and found.weight.dtype == np.float32
        assert found.rows.dtype == np.int32
        assert set(map(tuple, recount(found.rows.tolist(), faces.landmarks.person).values())) == {(3, 3)}
    again = collection.collected_splits(faces, seed=1)
    other = collection.collected_splits(faces, seed=2)
    assert np.array_equal(again["train"].rows, splits["train"].rows)
    assert not np.array_equal(other["train"].rows, splits["train"].rows)


@pytest.mark.skipif(not (DATA / "landmarks_spontaneous.h5").exists(), reason="needs landmarks_spontaneous.h5")
def test_spontaneous_set_agrees_in_about_equal_thirds():
    faces = marks.prepare(marks.read(DATA / "landmarks_spontaneous.h5"))
    start = time.perf_counter()
    splits = collection.collected_splits(faces)
    assert time.perf_counter() - start < 30  # 2 s alone on one core; this catches a slow loop, not a busy machine
    for found in splits.values():
        shares = [np.mean(found.weight == w) for w in (5, 3, 1)]
        assert all(0.28 < share < 0.39 for share in shares)  # published 0.340, 0.341, 0.319
        assert set(map(tuple, recount(found.rows.tolist(), faces.landmarks.person).values())) == {(3, 3)}
    close = [triplets.satisfied(faces.x, splits["train"])[splits["train"].weight == w].mean() for w in (5, 3, 1)]
    assert close[0] > close[1] > close[2] > 0.5


@pytest.mark.parametrize("change, words", [
    (lambda au: au.fill(-1), "a person with three different expressions without a blink, got none"),
    (lambda au: au.fill(0), "a person with three different expressions without a blink, got none"),
])
def test_a_set_without_candidates_is_refused(change, words):
    landmarks = spontaneous(persons=4)
    change(landmarks.au)
    with pytest.raises(NnliteError, match=words):
        collection.ask(faces_of(landmarks))


# -- sheets -----------------------------------------------------------------------------------------------------------


def header():
    inputs = [f"Input.{image}_{place}" for place in range(1, 21) for image in ("reference", "a", "b")]
    return (["HITId", "HITTypeId", "Title", "AssignmentId", "WorkerId", "AssignmentStatus", "AcceptTime"] + inputs
            + [f"Answer.q{place}" for place in range(1, 21)] + ["Approve", "Reject"])


def line_of(number, worker, letters, test=0, test_letter="A", status="Submitted"):
    rows = [*range(19), 19 + test]
    pictures = [f"face-{3 * row + i:06d}.png" for row in rows for i in range(3)]
    return ["H1", "T", "Which is more alike, A, or B?\nChoose.", f"A{number}", worker, status, "Mon Nov 3", *pictures,
            *letters, test_letter, "", ""]


def sheet(path, lines, head=None, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([head or header(), *lines])
    return path


def test_a_hand_written_result_sheet_is_read(tmp_path):
    questions = hand_made()
    letters = ["A", "B", ""] + ["B"] * 16
    path = sheet(tmp_path / "a.csv", [
        line_of(1, "Ann", letters), line_of(2, "Bob", letters, 3, "B", "Approved"),
        line_of(3, "Cid", letters, 1, "A", "Rejected")], encoding="utf-8-sig")
    answers = collection.read_answers([path], questions)
    assert answers.worker.tolist() == ["Ann", "Bob"]
    assert answers.question.tolist() == [[*range(19), -1], [*range(19), -4]]
    assert answers.choice.tolist() == [[0, 1, -1] + [1] * 16 + [0], [0, 1, -1] + [1] * 16 + [1]]


def test_sheets_round_trip(tmp_path):
    questions = collection.ask(faces_of(spontaneous()))
    rng = np.random.default_rng(0)
    sets, assignments = collection.hits(questions, rng.integers(0, 6, len(questions.rows)), rng)
    collection.write_sheet(tmp_path / "q.csv", questions, sets, assignments)
    back = collection.read_sheet(tmp_path / "q.csv", questions)
    assert np.array_equal(back[0], sets) and np.array_equal(back[1], assignments)
    answers, hit = collection.simulate(questions, sets, assignments, rng)
    collection.write_answers(tmp_path / "a.csv", questions, answers, hit, "one")
    again = collection.read_answers([tmp_path / "a.csv"], questions)
    assert all(np.array_equal(getattr(again, name), getattr(answers, name)) for name in vars(answers))
    collection.write_key(tmp_path / "key.h5", questions)
    key = collection.read_key(tmp_path / "key.h5")
    for name, values in vars(questions).items():
        assert np.array_equal(getattr(key, name), values) and getattr(key, name).dtype == values.dtype
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "key.h5", "q.csv"]


def test_the_question_sheet_names_pictures_and_no_answers(tmp_path):
    questions = hand_made()
    sets, assignments = collection.hits(questions, np.full(19, 5), np.random.default_rng(0))
    collection.write_sheet(tmp_path / "q.csv", questions, sets, assignments)
    with open(tmp_path / "q.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert list(line) == ["set", "assignments"] + [name.removeprefix("Input.") for name in header() if "Input." in name]
    assert line["set"] == "1" and line["assignments"] == "5"
    every = np.concatenate([questions.rows, questions.test]).tolist()
    shown = [[int(line[f"{image}_{p}"][5:11]) for image in ("reference", "a", "b")] for p in range(1, 21)]
    assert all(row in every for row in shown) and len({tuple(row) for row in shown}) == 20


def cell(name, value, number=3):
    def change(lines, head):
        lines[number][head.index(name)] = value
    return change


def drop(name):
    def change(lines, head):
        for line in lines:
            del line[head.index(name)]
        head.remove(name)
    return change


# line 2 is the first under the header, and every line takes two lines of text: its title has a line break
HOSTILE = {
    "choice": (cell("Answer.q7", "C"), r"line 8 column 'Answer.q7': expected A, B or nothing, got 'C'$"),
    "both": (cell("Answer.q20", "A|B"), r"line 8 column 'Answer.q20': expected A, B or nothing, got 'A\|B'$"),
    "status": (cell("AssignmentStatus", "Lost"),
               r"line 8 column 'AssignmentStatus': expected Submitted, Approved or Rejected, got 'Lost'$"),
    "no worker": (cell("WorkerId", " "), r"line 8 column 'WorkerId': expected an identifier, got nothing$"),
    "no HIT": (cell("HITId", ""), r"line 8 column 'HITId': expected an identifier, got nothing$"),
    "same assignment": (cell("AssignmentId", "A1"), r"line 8 column 'AssignmentId': .* got 'A1' of .* line 4 again$"),
    "foreign picture": (cell("Input.b_2", "face-000001.png"),
                        r"line 8 column 'Input.reference_2': expected reference, A and B of one of the 23 questions, "
                        r"got face-000003.png, face-000004.png, face-000001.png$"),
    "missing answers": (drop("Answer.q5"), r"line 1: expected one column 'Answer.q5', got none$"),
    "missing input": (drop("Input.a_20"), r"line 1: expected one column 'Input.a_20', got none$"),
    "missing worker": (drop("WorkerId"), r"line 1: expected one column 'WorkerId', got none$"),
    "column twice": (lambda lines, head: (head.append("Answer.q1"), [line.append("A") for line in lines]),
                     r"line 1: expected one column 'Answer.q1', got 2$"),
    "short line": (lambda lines, head: lines[1].pop(), r"line 4: expected 89 columns, up to 'Reject', got 88$"),
    "long line": (lambda lines, head: lines[1].append("x"), r"line 4: expected 89 columns, .* got 90$"),
    "no lines": (lambda lines, head: lines.clear(), r"expected at least one line under the header, got none$"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sheets_are_refused_in_one_sentence(tmp_path, name):
    change, words = HOSTILE[name]
    head, lines = header(), [line_of(n, f"w{n}", ["A"] * 19) for n in range(5)]
    change(lines, head)
    path = sheet(tmp_path / "a.csv", lines, head)
    with pytest.raises(NnliteError, match=words) as caught:
        collection.read_answers([path], hand_made())
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00bad", b'a,"b\nc', b"HITId\n", b"\x00" * 50,
                                     b"a" * 200000])
def test_files_that_are_no_sheet(tmp_path, content):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NnliteError) as caught:
        collection.read_answers([path], hand_made())
    assert str(caught.value).startswith(f"{path}") and "expected" in str(caught.value) and "\n" not in str(caught.value)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "faces.h5"
    marks.write(path, spontaneous())
    return str(path)


def run(*args):
    return collect.main([str(arg) for arg in args])


def test_the_three_steps_and_a_second_round(tmp_path, data, capsys):
    out = tmp_path / "round" / "trip"
    assert run("questions", "--data", data, "--out", out) == 0
    assert sorted(os.listdir(out)) == ["key.h5", "questions.csv"]
    assert "each for 5 workers" in capsys.readouterr().out
    assert run("simulate", out) == 0
    assert "simulated workers, not by people" in capsys.readouterr().out
    assert run("votes", out, "--answers", out / "answers.csv") == 0
    told = capsys.readouterr().out
    assert "vote difference" in told and "of them simulated" in told and "HITs to post again" in told
    faces = marks.prepare(marks.read(data))
    first = triplets.read(out / "triplets.h5", faces)
    sheets = [out / "answers.csv"]
    for number in range(1, 30):
        if not (out / f"again-{number}.csv").exists():
            break
        assert run("simulate", out, "--sheet", out / f"again-{number}.csv") == 0
        sheets.append(out / f"answers-{number}.csv")
        assert run("votes", out, "--answers", *sheets) == 0
    capsys.readouterr()
    last = triplets.read(out / "triplets.h5", faces)
    questions = collection.read_key(out / "key.h5")
    assert sum(len(t.rows) for t in first.values()) < sum(len(t.rows) for t in last.values()) == len(questions.rows)
    for found in last.values():
        assert set(map(tuple, recount(found.rows.tolist(), faces.landmarks.person).values())) == {(3, 3)}
    assert not [name for name in os.listdir(out) if name.endswith(".tmp")]


def refused(capsys, *args):
    assert run(*args) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "expected" in told.err
    return told.err


def test_bad_input_ends_with_code_2_and_writes_nothing(tmp_path, data, capsys):
    out = tmp_path / "out"
    assert "nowhere.h5" in refused(capsys, "questions", "--data", tmp_path / "nowhere.h5", "--out", out)
    assert "--seed" in refused(capsys, "questions", "--data", data, "--out", out, "--seed", -1)
    assert "key.h5" in refused(capsys, "simulate", out)
    assert "key.h5" in refused(capsys, "votes", out, "--answers", out / "answers.csv")
    assert not out.exists()
    (tmp_path / "file").write_text("")
    assert "folder" in refused(capsys, "questions", "--data", data, "--out", tmp_path / "file" / "below")
    assert run("questions", "--data", data, "--out", out) == 0
    capsys.readouterr()
    before = {name: (out / name).read_bytes() for name in os.listdir(out)}
    assert "without a collection" in refused(capsys, "questions", "--data", data, "--out", out)
    assert "HITId" in refused(capsys, "votes", out, "--answers", out / "questions.csv")
    assert "none.csv" in refused(capsys, "votes", out, "--answers", out / "none.csv")
    (out / "key.h5").write_bytes(before["key.h5"][:-1000])
    assert "damaged" in refused(capsys, "simulate", out)
    (out / "key.h5").write_bytes(before["key.h5"])
    assert {name: (out / name).read_bytes() for name in os.listdir(out)} == before


def test_people_s_answers_are_not_overwritten(tmp_path, data, capsys):
    assert run("questions", "--data", data, "--out", tmp_path) == 0
    (tmp_path / "answers.csv").write_text("people's")
    capsys.readouterr()
    assert "people's answers" in refused(capsys, "simulate", tmp_path)
    assert (tmp_path / "answers.csv").read_text() == "people's"


def test_a_sheet_of_rejected_answers_asks_everything_again(tmp_path, capsys):
    collection.write_key(tmp_path / "key.h5", hand_made())
    path = sheet(tmp_path / "answers.csv", [line_of(1, "Ann", ["A"] * 19, status="Rejected")])
    assert run("votes", tmp_path, "--answers", path) == 0
    assert "0 triplets of 19 questions" in capsys.readouterr().out
    sets, assignments = collection.read_sheet(tmp_path / "again-1.csv", hand_made())
    assert len(sets) == 1 and assignments.tolist() == [5]


@pytest.mark.parametrize("name, value, words", [
    ("assignments", "0", "line 2 column 'assignments': expected a number from 1 to 5, got '0'"),
    ("assignments", "many", "got 'many'"),
    ("b_4", "face.png", "column 'reference_4'"),
])
def test_a_damaged_question_sheet(tmp_path, name, value, words):
    questions = hand_made()
    path = tmp_path / "q.csv"
    collection.write_sheet(path, questions, *collection.hits(questions, np.full(19, 5), np.random.default_rng(0)))
    head, line = csv.reader(path.read_text().splitlines())
    line[head.index(name)] = value
    with pytest.raises(NnliteError, match=words):
        collection.read_sheet(sheet(path, [line], head), questions)
