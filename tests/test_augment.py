"""warp_batch against loops in Python, SciPy and PyTorch; the maps of an augmentation against matrices step by step."""

import math

import numpy as np
import pytest

from nnlite.data.augment import Augmentation, plain
from nnlite.ops import get_ops
from nnlite.ops.reference import ReferenceOps
from nnlite.rng import Rng

ALL = dict(flip=True, rotate=10.0, shift=0.1, zoom=0.2, contrast=0.3, brightness=0.15)
REFERENCE = get_ops("reference")

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def pictures(n, H, W, C, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, H, W, C)).astype(np.uint8)


def warped(ops, images, rows, maps, tone, shift, scale, size, dtype):
    arrays = (ops.asarray(images), ops.asarray(rows, "int32"), ops.asarray(maps, "float32"),
              ops.asarray(tone, "float32"), ops.asarray(shift, dtype), ops.asarray(scale, dtype))
    before = [np.array(ops.to_host(array)) for array in arrays]
    got = ops.warp_batch(*arrays, size, dtype)
    for array, values in zip(arrays, before):
        np.testing.assert_array_equal(ops.to_host(array), values)
    assert got.dtype == dtype and got.shape == (len(rows), *size, images.shape[3])
    return ops.to_host(got)


def as_it_is(ops, images, maps, size, dtype):
    """Only warped: pixels from 0 to 255."""
    C, B = images.shape[3], len(maps)
    return warped(ops, images, np.arange(B), maps, [[1, 0]] * B, np.zeros(C), np.ones(C), size, dtype)


# -- the op -----------------------------------------------------------------------------------------------------------


def one_by_one(images, rows, maps, tone, shift, scale, size):
    """warp_batch in Python numbers, pixel by pixel."""
    _, H, W, C = images.shape
    out = np.empty((len(rows), *size, C))
    for n, h, w, c in np.ndindex(out.shape):
        channel = images[rows[n], :, :, c].astype(float)
        r, s = (float(m[0]) * h + float(m[1]) * w + float(m[2]) for m in np.float32(maps[n]))
        value = 0.0
        for i in (math.floor(r), math.floor(r) + 1):          # edges repeated as far as the place lies beyond them
            for j in (math.floor(s), math.floor(s) + 1):
                weight = (1 - abs(r - i)) * (1 - abs(s - j))
                value += weight * channel[min(max(i, 0), H - 1), min(max(j, 0), W - 1)]
        contrast, brightness = map(float, np.float32(tone[n]))
        value = (value - channel.mean()) * contrast + channel.mean() + 255 * brightness
        out[n, h, w, c] = (min(max(value, 0.0), 255.0) - shift[c]) * scale[c]
    return out


TURNED = [[0.9, -0.3, 1.2], [0.25, 1.1, -0.7]]
BEYOND = [[-1.7, 2.2, 3.0], [2.5, 1.5, -4.0]]            # most of it outside
STRAIGHT = [[0.8, 0, 0.3], [0, -1.1, 6.5]]
SHEARED = [[0.7, 0, 0.2], [0.4, 1.0, -1.0]]              # a line of the output is straight, but not all are alike
EDGES = [[1, 0, -1], [0, 1, 1]]                          # whole numbers: also the last line and column, and beyond
TONES = [[1, 0], [1.4, 0.1], [0.6, -0.2], [0, 0.05], [1, 0.9]]


@both_dtypes
@pytest.mark.parametrize("H, W, C, size", [(5, 7, 1, (5, 7)), (5, 7, 3, (4, 9)), (1, 6, 1, (3, 4)), (6, 1, 3, (3, 4)),
                                           (1, 1, 1, (2, 2))])
def test_warp_batch_number_by_number(ops, H, W, C, size, dtype):
    images, rows = pictures(4, H, W, C), [3, 0, 0, 2, 1]
    maps, shift, scale = [TURNED, BEYOND, STRAIGHT, SHEARED, EDGES], 90 + np.arange(C), 0.01 * (1 + np.arange(C))
    got = warped(ops, images, rows, maps, TONES, shift, scale, size, dtype)
    np.testing.assert_allclose(got, one_by_one(images, rows, maps, TONES, shift, scale, size), rtol=0,
                               atol={"float32": 2e-5, "float64": 1e-12}[dtype])


@both_dtypes
def test_warp_batch_is_scipys_interpolation(ops, dtype):
    ndimage = pytest.importorskip("scipy.ndimage")
    images, size = pictures(5, 33, 41, 2), (30, 52)
    maps = np.float32([TURNED, BEYOND, STRAIGHT, SHEARED, EDGES])
    got = as_it_is(ops, images, maps, size, dtype)
    h, w = np.mgrid[:size[0], :size[1]]
    for n, c in np.ndindex(5, 2):
        places = [float(m[0]) * h + float(m[1]) * w + float(m[2]) for m in maps[n]]
        wanted = ndimage.map_coordinates(images[n, :, :, c].astype(float), places, order=1, mode="nearest")
        np.testing.assert_allclose(got[n, :, :, c], wanted, rtol=0, atol={"float32": 0.02, "float64": 1e-10}[dtype])


@pytest.mark.parametrize("size_in, size_out", [((7, 9), (7, 9)), ((7, 9), (16, 13)), ((12, 9), (5, 4)),
                                               ((6, 8), (9, 3))])
def test_plain_resizes_as_pytorch_does(ops, size_in, size_out):
    """Centres of pixels aligned, edges repeated: interpolate(..., align_corners=False)."""
    torch = pytest.importorskip("torch")
    images = pictures(2, *size_in, 3)
    got = as_it_is(ops, images, [plain(size_in, size_out)] * 2, size_out, "float64")
    x = torch.from_numpy(images.astype(np.float64).transpose(0, 3, 1, 2))
    wanted = torch.nn.functional.interpolate(x, size_out, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(got, wanted.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-4)   # the map is float32


@both_dtypes
def test_the_plain_map_of_one_size_is_image_batch(ops, dtype):
    images, rows = pictures(4, 6, 5, 3), np.array([2, 0, 3])
    np.testing.assert_array_equal(plain((6, 5), (6, 5)), [[1, 0, 0], [0, 1, 0]])
    shift, scale = np.array([100, 110, 120.5]), np.array([0.01, 0.02, 0.03])
    got = warped(ops, images, rows, [plain((6, 5), (6, 5))] * 3, [[1, 0]] * 3, shift, scale, (6, 5), dtype)
    wanted = ops.image_batch(ops.asarray(images), ops.asarray(rows, "int32"), ops.zeros((3,), "uint8"),
                             ops.zeros((3, 2), "int32"), ops.asarray(shift, dtype), ops.asarray(scale, dtype), dtype)
    np.testing.assert_allclose(got, ops.to_host(wanted), rtol=0, atol={"float32": 1e-6, "float64": 1e-14}[dtype])


@pytest.mark.parametrize("H, W", [(4, 5), (1, 5), (4, 1)])
def test_nothing_beyond_an_image_is_read(ops, H, W):
    """The images before and after it are not numbers; their weight 0 would not help."""
    images = np.full((3, H, W, 2), np.nan, np.float32)
    images[1] = pictures(1, H, W, 2)[0]
    maps = [TURNED, BEYOND, STRAIGHT, SHEARED, EDGES, plain((H, W), (H, W))]
    arguments = [[1] * 6, maps, [[1, 0]] * 6, [0, 0], [1, 1], (5, 6)]
    got = warped(ops, images, *arguments, "float32")
    np.testing.assert_allclose(got, one_by_one(images, *arguments), rtol=0, atol=1e-3)


def test_the_images_are_not_copied(monkeypatch):
    ops, images = get_ops("cpu"), pictures(4, 6, 5, 1)
    calls = []
    launch = type(ops).launch
    monkeypatch.setattr(type(ops), "launch", lambda self, *given: calls.append(given) or launch(self, *given))
    ops.warp_batch(images, np.zeros(2, np.int32), np.float32([TURNED] * 2), np.float32([[1, 0]] * 2),
                   np.zeros(1, np.float32), np.ones(1, np.float32), (3, 3), "float32")
    assert len(calls) == 1 and calls[0][1] is images


def test_a_captured_warp_reads_what_stands_in_its_buffers():
    ops, images, rng = get_ops("cpu"), pictures(9, 8, 7, 3), np.random.default_rng(0)
    rows, maps, tone = ops.zeros((4,), "int32"), ops.zeros((4, 2, 3), "float32"), ops.zeros((4, 2), "float32")
    shift, scale = np.full(3, 100, np.float32), np.full(3, 0.01, np.float32)
    replay = ops.capture(lambda: ops.warp_batch(images, rows, maps, tone, shift, scale, (6, 6), "float32"))
    for number in range(4):
        rows[...], maps[...] = rng.integers(0, 9, 4), rng.normal(size=(4, 2, 3))
        tone[...] = rng.uniform(0.5, 1.5, (4, 2))
        wanted = one_by_one(images, rows, maps, tone, shift, scale, (6, 6))
        np.testing.assert_allclose(replay(), wanted, rtol=0, atol=2e-5, err_msg=str(number))


# -- what is drawn ----------------------------------------------------------------------------------------------------


def augmentation(count=50, size_in=(48, 64), size_out=(30, 20), seed=5, **settings):
    return Augmentation(count=count, size_in=size_in, size_out=size_out, seed=seed, **(settings or ALL))


def chances(count, seed, epoch):
    """(count, 7) between 0 and 1: the numbers that an epoch is made of."""
    rng = Rng(ReferenceOps(), seed)
    rng.set_step(epoch)
    return (rng.ops.random_words(count, 7, rng.key("augment")) + 0.5) / 2 ** 32


def step_by_step(chances, size_in, size_out, flip, rotate, shift, zoom, contrast, brightness):
    """The map (2, 3) as a product of one matrix for each step, y and x counted from the middle; and the tone."""
    (H, W), (Ho, Wo) = size_in, size_out
    flipped, turn, down, right, larger, contrast_, brightness_ = chances
    centre = np.array([[H / Ho, 0, (0.5 / Ho - 0.5) * H], [0, W / Wo, (0.5 / Wo - 0.5) * W], [0, 0, 1]])
    z = 1 + (2 * larger - 1) * zoom
    t = math.radians((2 * turn - 1) * rotate)
    rotation = np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]])
    mirror = np.diag([1, -1 if flip and flipped < 0.5 else 1, 1])
    move = np.array([[1, 0, (2 * down - 1) * shift * H], [0, 1, (2 * right - 1) * shift * W], [0, 0, 1]])
    corner = np.array([[1, 0, H / 2 - 0.5], [0, 1, W / 2 - 0.5], [0, 0, 1]])
    whole = corner @ move @ mirror @ rotation @ np.diag([1 / z, 1 / z, 1]) @ centre
    return whole[:2], [1 + (2 * contrast_ - 1) * contrast, (2 * brightness_ - 1) * brightness]


@pytest.mark.parametrize("settings", [ALL, {**ALL, "flip": False}, dict.fromkeys(ALL, 0)])
def test_maps_are_the_steps_one_after_the_other(settings):
    maps, tone = augmentation(**settings).draw(np.arange(50), 3)
    assert maps.shape == (50, 2, 3) and tone.shape == (50, 2) and maps.dtype == tone.dtype == np.float32
    for row, numbers in enumerate(chances(50, 5, 3)):
        a_map, a_tone = step_by_step(numbers, (48, 64), (30, 20), **settings)
        np.testing.assert_allclose(maps[row], a_map, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(tone[row], a_tone, rtol=1e-6)


def test_without_anything_it_only_resizes():
    maps, tone = augmentation(flip=False).draw([3, 1], 0)
    np.testing.assert_allclose(maps, [plain((48, 64), (30, 20))] * 2, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(tone, [[1, 0]] * 2)
    assert (maps[:, 0, 1] == 0).all() and (maps[:, 1, 0] == 0).all()


def test_an_image_is_a_function_of_seed_epoch_and_row():
    whole = augmentation().draw(np.arange(50), 7)
    resumed = augmentation()                          # begins in the middle
    for rows in ([17], [40, 17, 3], list(range(50)), [3, 3]):
        for wanted, got in zip(whole, resumed.draw(rows, 7)):
            np.testing.assert_array_equal(got, wanted[rows])
    larger = augmentation(count=400).draw(np.arange(50), 7)
    for wanted, got in zip(whole, larger):
        np.testing.assert_array_equal(got, wanted)
    for other in (augmentation().draw(np.arange(50), 8), augmentation(seed=6).draw(np.arange(50), 7)):
        for wanted, got in zip(whole, other):
            assert (got != wanted).any(tuple(range(1, got.ndim))).all()
    assert len({tone.tobytes() for tone in whole[1]}) == 50


def test_a_batch_across_two_epochs():
    drawn, rows, epochs = augmentation(), [4, 9, 4, 2], [2, 2, 3, 3]
    for part, number in zip(drawn.draw(rows, epochs), (0, 1)):
        for row, epoch, got in zip(rows, epochs, part):
            np.testing.assert_array_equal(got, augmentation().draw([row], epoch)[number][0])
    for epoch in (0, 7, 1):                           # in any order
        np.testing.assert_array_equal(drawn.draw([1], epoch)[0], augmentation().draw([1], epoch)[0])


def test_the_numbers_are_uniform():
    n = 4000
    maps, tone = augmentation(count=n, size_in=(40, 60), size_out=(40, 60)).draw(np.arange(n), 0)
    maps = maps.astype(float)
    mirror = np.where(np.linalg.det(maps[:, :, :2]) < 0, -1, 1)
    degrees = np.rad2deg(np.arctan2(-maps[:, 0, 1], maps[:, 0, 0]))
    zoom = 1 / np.hypot(maps[:, 0, 0], maps[:, 0, 1])
    middle = maps @ [19.5, 29.5, 1] - [19.5, 29.5]    # where the middle went
    found = {"rotate": degrees / 10, "down": middle[:, 0] / 4, "right": middle[:, 1] / 6, "zoom": (zoom - 1) / 0.2,
             "contrast": (tone[:, 0] - 1) / 0.3, "brightness": tone[:, 1] / 0.15}
    assert abs(mirror.mean()) < 4 / math.sqrt(n)
    for name, values in found.items():
        assert abs(values).max() < 1 + 1e-4, name
        spread = np.abs(np.sort(values) - np.linspace(-1, 1, n)).max()      # Kolmogorov and Smirnov's, doubled
        assert spread < 4 / math.sqrt(n), name
    table = np.corrcoef([mirror, *found.values()]) - np.eye(7)
    assert abs(table).max() < 5 / math.sqrt(n)


def test_a_turn_bends_no_square():
    """In a picture that is not square: places as far from the middle as the pixels that show them."""
    maps, _ = augmentation(size_in=(30, 50), size_out=(30, 50), rotate=40.0, flip=True).draw(np.arange(50), 0)
    points = np.array([[0, 0, 1], [29, 49, 1], [7, 30, 1]])
    places = np.einsum("nij,kj->nki", maps.astype(float), points)
    wanted = np.hypot(*(points[:, :2] - [14.5, 24.5]).T)
    np.testing.assert_allclose(np.linalg.norm(places - [14.5, 24.5], axis=2), np.tile(wanted, (50, 1)), rtol=1e-5)
    assert np.ptp(places[:, 0, 0]) > 20


def test_a_flip_mirrors_left_to_right():
    images = pictures(50, 6, 9, 1)
    maps, tone = augmentation(size_in=(6, 9), size_out=(6, 9), flip=True).draw(np.arange(50), 0)
    got = warped(REFERENCE, images, np.arange(50), maps, tone, [0], [1], (6, 9), "float32")
    flipped = [np.allclose(g, image[:, ::-1], atol=1e-3) for g, image in zip(got, images)]
    same = [np.allclose(g, image, atol=1e-3) for g, image in zip(got, images)]
    assert 10 < sum(flipped) < 40 and [not f for f in flipped] == same
