"""The built-in faces: their make-up, their movements, and that they are as hard as real ones."""

import time
from dataclasses import replace

import numpy as np
import pytest

from nnlite.data import synthetic
from nnlite.data.landmarks import ACTION_UNITS, blinking, prepare, straighten, validate


@pytest.fixture(scope="module")
def posed():
    return synthetic.posed()


@pytest.fixture(scope="module")
def spontaneous():
    return synthetic.spontaneous()


def test_face_at_rest_is_a_face():
    face = synthetic.face_at_rest()
    assert face.shape == (83, 3)
    mirrored = face * (-1, 1, 1)  # every point has a mirror image in the table
    assert all(np.abs(face - point).max(axis=1).min() < 1e-12 for point in mirrored)
    for side, (lower, upper) in enumerate(zip(synthetic.LOWER_LIDS, synthetic.UPPER_LIDS)):
        assert (face[list(lower), 1] < face[list(upper), 1].min()).all()
        assert np.sign(face[list(lower), 0]).tolist() == [2 * side - 1] * 3
    heights = [face[a:b, 1].mean() for a, b in ((16, 36), (0, 16), (36, 48), (48, 68))]
    assert heights == sorted(heights, reverse=True)  # brows, eyes, nose, mouth


def test_movements():
    move = dict(zip(synthetic.UNITS, synthetic.movements()))
    left = [4, 3, 2, 1, 0, 7, 6, 5]  # of the eye at negative x, the mirror image of point i of the other
    for field in move.values():
        np.testing.assert_allclose(field[1, 8:16] * (-1, 1, 1), field[0, left], atol=1e-12)
        np.testing.assert_allclose(field[0, 8:16], 0, atol=1e-12)  # one side does not move the other's eye
    smile, frown, blink = (move[unit].sum(0) for unit in (12, 4, 45))
    corners = [48, 54]  # of the mouth, at negative and positive x
    assert (smile[corners, 1] > 4).all() and smile[48, 0] < -4 < 4 < smile[54, 0]
    assert (frown[[20, 26], 1] < -3).all() and frown[20, 0] > 1 and frown[26, 0] < -1
    assert np.abs(blink[[5, 6, 7, 13, 14, 15]]).max() == 0 and (blink[[2, 10], 1] < -7).all()


def test_posed_make_up(posed):
    validate(posed, "posed")
    assert posed.points.shape == (2500, 83, 3) and posed.points.dtype == np.float32
    assert np.bincount(posed.person).tolist() == [25] * 100
    cells = set(zip(posed.person.tolist(), posed.emotion.tolist(), posed.level.tolist()))
    want = {(p, e, d) for p in range(100) for e in range(1, 7) for d in range(1, 5)} | {(p, 0, 0) for p in range(100)}
    assert cells == want
    assert "synthetic" in posed.source


def test_spontaneous_make_up(spontaneous):
    validate(spontaneous, "spontaneous")
    assert spontaneous.points.shape == (41 * 8 * 60, 83, 3) and spontaneous.au_numbers == ACTION_UNITS
    share = spontaneous.au.mean(axis=0)
    assert share.min() > 0.08 and share.max() < 0.5
    assert 0.02 < blinking(spontaneous).mean() < 0.12
    assert np.abs(spontaneous.pose.std(axis=0) - synthetic.SPONTANEOUS_TURN).max() < 0.02
    # Smooth: from frame to frame a code seldom changes, and the head turns little.
    follows = np.diff(spontaneous.frame) == 1
    assert (np.diff(spontaneous.au, axis=0)[follows] != 0).mean() < 0.1
    assert np.abs(np.diff(spontaneous.pose, axis=0)[follows]).max() < 0.25


def test_pose_is_the_one_that_was_applied(spontaneous):
    rest = (spontaneous.au == 0).all(axis=1) & (spontaneous.person == 0)

    def scatter(landmarks):
        return straighten(landmarks)[rest].var(axis=0).sum()

    still = replace(spontaneous, pose=np.zeros_like(spontaneous.pose))
    assert scatter(spontaneous) < 0.5 * scatter(still)


def test_seeds():
    a, b, c = (synthetic.posed(seed=seed, persons=3) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.points, b.points)
    assert np.abs(a.points - c.points).max() > 1
    d, e = (synthetic.spontaneous(seed=5, persons=3, frames=10) for _ in range(2))
    np.testing.assert_array_equal(d.points, e.points)
    assert d.points.shape == (240, 83, 3)


def test_made_quickly():
    start = time.perf_counter()
    synthetic.posed()
    synthetic.spontaneous()
    assert time.perf_counter() - start < 6  # 3 s each; it takes about half a second


def test_as_hard_as_real_faces(posed):
    svm = pytest.importorskip("sklearn.svm")
    faces = prepare(posed)
    train, validation, test = faces.split.values()
    held = np.concatenate([validation, test])

    def accuracy(z):
        model = svm.LinearSVC(C=1, dual=False).fit(z[train], posed.emotion[train])
        return model.score(z[held], posed.emotion[held])

    neutral = faces.x[faces.neutral]
    raw, difference = accuracy(faces.x), accuracy(faces.x - neutral)
    assert 0.68 < raw < 0.78
    assert 0.77 < difference < 0.87 and difference > raw + 0.03
    assert neutral.var(axis=0).sum() > 0.7 * faces.x.var(axis=0).sum()  # who it is moves more than what they feel

    rng = np.random.default_rng(0)
    ref, plus, minus = rng.choice(validation, (3, 20000))
    emotion = posed.emotion
    kept = (emotion[ref] == emotion[plus]) & (emotion[ref] != emotion[minus]) & (ref != plus)
    near, far = (np.linalg.norm(faces.x[ref[kept]] - faces.x[other[kept]], axis=1) for other in (plus, minus))
    assert 0.53 < (near <= far).mean() < 0.66
