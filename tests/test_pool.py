"""The memory pool and the arena: nothing is handed out twice while somebody holds it, and a training step allocates
nothing."""

import gc

import numpy as np
import pytest

from nnlite.data.landmarks import Faces, LandmarkSet
from nnlite.data.triplets import Triplets
from nnlite.experiments import FaceExperiment
from nnlite.ops.cpu import CpuOps
from nnlite.ops.cpu import arena as arenas
from nnlite.ops.cpu.arena import Arena
from nnlite.ops.pool import ALIGNMENT, Pool

either = pytest.mark.parametrize("make", [Pool, Arena])


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint32", "int8"])
@either
def test_arrays_are_aligned_and_of_the_shape_asked_for(dtype, make):
    pool = make()
    arrays = [pool.empty(shape, dtype) for shape in ((), (1,), (3, 5), (1025,), (0, 4), (2, 3, 4))]
    for array, shape in zip(arrays, ((), (1,), (3, 5), (1025,), (0, 4), (2, 3, 4))):
        assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
        assert address(array) % ALIGNMENT == 0


@either
def test_a_block_comes_back_when_nobody_holds_it(make):
    pool = make()
    a = pool.empty((100,), "float32")
    place = address(a)
    del a
    assert address(pool.empty((10, 10), "float32")) == place
    assert address(pool.empty((50,), "float64")) == place   # as many bytes


@either
def test_arrays_that_live_do_not_share_memory(make):
    pool = make()
    arrays = [pool.empty((n,), "float32") for n in (1, 100, 1000, 1024, 1025, 5000) * 3]
    for number, array in enumerate(arrays):
        array[:] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()


HOLDERS = {
    "the array": lambda a: a,
    "a slice": lambda a: a[3:7],
    "a view of a view": lambda a: a[2:].reshape(-1, 2)[:, 1],
    "a transposed view": lambda a: a.reshape(10, 10).T,
    "an element's view": lambda a: a[5:6].reshape(()),
    "another dtype": lambda a: a.view("uint8")[40:80],
    "in a list": lambda a: [a[:1]],
    "a memoryview": lambda a: memoryview(a)[1:3],
    "a broadcast view": lambda a: np.broadcast_to(a[:1], (4,)),
}


@pytest.mark.parametrize("holder", HOLDERS)
@either
def test_a_block_is_not_handed_out_while_it_is_held(holder, make):
    pool = make()
    a = pool.empty((100,), "float32")
    a[:] = 7
    place, held = address(a), HOLDERS[holder](a)
    del a
    others = [pool.empty((100,), "float32") for _ in range(3)]
    assert place not in [address(other) for other in others]
    for other in others:
        other[:] = 0
    values = np.asarray(held[0] if isinstance(held, list) else held)
    assert (values.view("float32") == 7).all() if values.dtype == "uint8" else (values == 7).all()
    del held, values
    assert place in [address(pool.empty((100,), "float32"))]


def test_size_counts_every_block_once():
    pool = Pool()
    assert pool.nbytes() == 0
    a = pool.empty((1024,), "float32")
    assert pool.nbytes() == 4096
    b = pool.empty((1025,), "float32")
    assert pool.nbytes() == 4096 + 8192
    del a, b
    for _ in range(10):
        pool.empty((1024,), "float32"), pool.empty((1025,), "float32")
    assert pool.nbytes() == 4096 + 8192


def test_an_arena_needs_what_is_held_at_once_and_no_more():
    arena = Arena()
    a, b, c = arena.empty((1000,), "float32"), arena.empty((3000,), "float32"), arena.empty((1000,), "float32")
    begin, size = address(a), arena.nbytes()
    assert size == 4032 + 12032 + 4032    # whole cache lines
    del a, b
    parts = [arena.empty((2000,), "int16"), arena.empty((1500,), "float64")]    # cut from what both left
    assert arena.nbytes() == size and [address(part) - begin for part in parts] == [0, 4032]
    del c
    whole = arena.empty((1000,), "float64")    # behind them, where c was and further
    assert address(whole) - begin == 4032 + 12032 and arena.nbytes() == 4032 + 12032 + 8000
    assert arena.owns(whole[3:].reshape(-1, 1)) and not arena.owns(np.empty(3))
    place = whole[10:]
    del whole, parts
    assert arena.owns(place) and address(arena.empty((4016,), "float32")) == begin


def test_an_arena_asks_for_another_region_when_one_is_full(monkeypatch):
    monkeypatch.setattr(arenas, "REGION", 1 << 14)
    arena = Arena()
    arrays = [arena.empty((n,), "uint8") for n in (10000, 10000, 6000, 50000)]
    for number, array in enumerate(arrays):
        array[:] = number
    assert all((array == number).all() for number, array in enumerate(arrays))
    assert arena.nbytes() == 10048 + 6016 + 10048 + 50048    # the third lies behind the first
    assert address(arrays[2]) == address(arrays[0]) + 10048


@either
def test_arrays_that_come_and_go_keep_what_is_theirs(make, monkeypatch):
    monkeypatch.setattr(arenas, "REGION", 1 << 16)
    pool, draw, held = make(), np.random.default_rng(0), []
    for number in range(2000):
        array = pool.empty((int(draw.integers(1, 8000)),), "int32")
        array[:] = number
        held.append((number, array[::2] if number % 3 else array.reshape(1, -1)))
        if len(held) > 20:
            oldest, array = held.pop(int(draw.integers(len(held))))
            assert (array == oldest).all()
            del array
    assert len(held) == 20 and all((array == number).all() for number, array in held)


def test_release_gives_back_what_nobody_holds():
    pool = Pool()
    held, idle, view = pool.empty((1000,), "float64"), pool.empty((5000,), "float32"), pool.empty((9000,), "int64")[1:]
    held[:], view[:], before = 1, 2, pool.nbytes()
    del idle
    pool.release()
    assert before - pool.nbytes() == 20480    # five pages
    assert (held == 1).all() and (view == 2).all()
    again = pool.empty((5000,), "float32")
    again[:] = 3
    assert (held == 1).all() and (view == 2).all()
    size = pool.nbytes()
    pool.release()
    assert pool.nbytes() == size


def test_results_never_change_under_their_owner():
    """What a layer returned stays as it is, whatever is computed afterwards."""
    ops = CpuOps()
    x, W = np.ones((50, 20), "float32"), np.ones((20, 30), "float32")
    first = ops.linear(x, W, None)
    copy = first.copy()
    for k in range(20):
        ops.linear(x * k, W, None)
        ops.activation(first, "elu", 1.0, True)
    np.testing.assert_array_equal(first, copy)


def small_experiment(ops):
    """vae3 on 40 random faces of 4 points."""
    draw = np.random.default_rng(0)
    x, neutral = draw.normal(size=(40, 12)).astype("float32"), (np.arange(40) // 5 * 5).astype("int32")
    landmarks = LandmarkSet(points=x.reshape(40, 4, 3), person=np.arange(40, dtype="int32") // 5, source="random",
                            units="none", lower_lids=((0,), (1,)), upper_lids=((2,), (3,)))
    faces = Faces(x=x, neutral=neutral, mean=np.zeros(12, "float32"), landmarks=landmarks,
                  split={"train": np.arange(30, dtype="int32"), "validation": np.arange(30, 35, dtype="int32"),
                         "test": np.arange(35, 40, dtype="int32")})
    triplets = {name: Triplets(rows=draw.choice(rows, (20, 3)).astype("int32"), weight=np.ones(20, "float32"))
                for name, rows in faces.split.items()}
    settings = {"model": "vae3", "encoder": [24, 20, 16, 5], "decoder": [17, 14, 12], "reconstruction_variance": 1e-2,
                "topological_variance": 0.1, "samples": 3, "triplet_samples": 4, "keep_prob": 0.9, "batch_size": 10,
                "triplet_batch": 3, "anneal": 50, "anneal_mode": "kl", "learning_rate": 1e-3}
    return FaceExperiment(settings, faces, triplets, ops)


def test_training_allocates_nothing_after_the_first_step():
    ops = CpuOps()
    experiment = small_experiment(ops)
    experiment.step(0)
    gc.disable()   # memory must come back by itself, not by the collector of cycles
    try:
        experiment.step(1)
        size = ops._pool.nbytes()
        for iteration in range(2, 300):
            terms = experiment.step(iteration)
        assert ops._pool.nbytes() == size
        experiment.validate()
        size = ops._pool.nbytes()
        for iteration in range(300, 400):
            experiment.step(iteration)
        experiment.validate()
        assert ops._pool.nbytes() == size
    finally:
        gc.enable()
    assert all(np.isfinite(float(value)) for value in terms.values())
