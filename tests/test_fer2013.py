"""FER2013's CSV in all its wrappings, the cache, and every bad input, against int() of every pixel."""

import gzip
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nnlite.data import fer2013, images
from nnlite.errors import NnliteError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("NNLITE_CACHE", str(folder))
    return folder


def table(n=60, usages=("Training",) * 4 + ("PublicTest", "PrivateTest"), seed=0):
    """Rows (emotion, pixels, usage) as text."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 2304))
    return [(str(rng.integers(7)), " ".join(map(str, row)), usages[i % len(usages)]) for i, row in enumerate(pixels)]


def text(rows, header="emotion,pixels,Usage", order=(0, 1, 2), end="\n"):
    return "".join(line + end for line in [header, *(",".join(row[i] for i in order) for row in rows)])


def archive(content, name="fer2013/fer2013.csv"):
    """Kaggle's archive: a bibliography and a README beside the CSV."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member, data in (("fer2013/README", b"hello"), (name, content), ("fer2013/fer2013.bib", b"@inproceedings")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def wrapped(path, content):
    """Writes the CSV's bytes in the wrapping that the file's name says."""
    pack = archive if path.name.endswith((".tar.gz", ".tgz")) else gzip.compress if path.suffix == ".gz" else bytes
    path.write_bytes(pack(content))
    return path


def check(image_set, rows):
    naive = np.array([[int(word) for word in pixels.split()] for _, pixels, _ in rows])
    np.testing.assert_array_equal(image_set.images, naive.reshape(-1, 48, 48, 1))
    assert image_set.images.dtype == np.uint8
    assert image_set.labels.tolist() == [int(emotion) for emotion, _, _ in rows]
    assert image_set.classes == CLASSES
    for part, usage in (("train", "Training"), ("test", "PublicTest"), ("private", "PrivateTest")):
        want = [i for i, row in enumerate(rows) if row[2] == usage]
        assert image_set.split.get(part, np.array([])).tolist() == want


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "fer2013.tar.gz", "fer2013.tgz", "F.CSV"])
def test_wrappings(name, tmp_path, monkeypatch):
    monkeypatch.setattr(fer2013, "ROWS_AT_ONCE", 16)  # 60 rows: three full blocks and a rest
    rows = table()
    path = wrapped(tmp_path / name, text(rows).encode())
    check(fer2013.read(path), rows)
    whole = images.read(path, seed=3)
    assert list(whole.split) == ["train", "validation", "test", "private"] and str(path) in whole.source
    assert {name: len(part) for name, part in whole.split.items()} == {
        "train": 36, "validation": 4, "test": 10, "private": 10}


@pytest.mark.parametrize("written", [
    {"header": "emotion, pixels, Usage"},
    {"header": "emotion, Usage, pixels", "order": (0, 2, 1)},
    {"header": "\ufeffemotion,pixels,Usage", "end": "\r\n"},
    {"header": "emotion,pixels,Usage", "end": "\n\n"},
    {"header": '"emotion","pixels","Usage"'},
])
def test_dialects(written, tmp_path):
    rows = table(8)
    path = wrapped(tmp_path / "f.csv", text(rows, **written).encode())
    check(fer2013.read(path), rows)


def test_exactly_whole_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(fer2013, "ROWS_AT_ONCE", 6)
    rows = table(12)
    check(fer2013.read(wrapped(tmp_path / "f.csv", text(rows).encode())), rows)


def test_blanks_around_fields(tmp_path):
    rows = table(6)
    blank = [(f" {a}", f" {b.replace(' ', '  ')} ", f" {c} ") for a, b, c in rows]
    check(fer2013.read(wrapped(tmp_path / "f.csv", text(blank).encode())), rows)


def test_without_a_public_test(tmp_path):
    rows = table(50, usages=("Training",))
    whole = images.read(wrapped(tmp_path / "f.csv", text(rows).encode()))
    assert {name: len(part) for name, part in whole.split.items()} == {"train": 40, "validation": 5, "test": 5}


def test_copies_stay_on_one_side(tmp_path):
    rows = table(80, usages=("Training",))
    rows += [(label, pixels, "Training") for label, pixels, _ in rows[:40]]
    whole = images.read(wrapped(tmp_path / "f.csv", text(rows).encode()), held_out=0.2)
    for part in whole.split.values():
        both = [row in set(part.tolist()) for row in range(40)], [row + 80 in set(part.tolist()) for row in range(40)]
        assert both[0] == both[1]


# -- the cache --------------------------------------------------------------------------------------------------------


def test_converted_once(tmp_path, cache, monkeypatch, capsys):
    rows = table(12)
    path = wrapped(tmp_path / "f.csv", text(rows).encode())
    fer2013.read(path)
    stored, = cache.iterdir()
    assert str(stored) in capsys.readouterr().err and stored.suffix == ".h5"
    monkeypatch.setattr(fer2013, "_rows", lambda *_: pytest.fail("converted twice"))
    monkeypatch.chdir(tmp_path)
    check(fer2013.read("f.csv"), rows)
    check(images.read_hdf5(stored), rows)
    assert capsys.readouterr().err == ""


def test_another_file_another_entry(tmp_path, cache):
    path = tmp_path / "f.csv"
    entries = set()
    for i, rows in enumerate((table(12), table(12)[::-1])):  # of one size, changed at another time
        wrapped(path, text(rows).encode())
        os.utime(path, ns=(i, i))
        check(fer2013.read(path), rows)
        entries.add(fer2013.cache_path(path))
    assert len(entries) == 2 and set(cache.iterdir()) == entries


def test_damaged_entry_is_made_anew(tmp_path, cache):
    rows = table(12)
    path = wrapped(tmp_path / "f.csv", text(rows).encode())
    fer2013.read(path)
    stored, = cache.iterdir()
    stored.write_bytes(stored.read_bytes()[:3000])
    check(fer2013.read(path), rows)
    assert list(cache.iterdir()) == [stored]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NNLITE_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fer2013.cache_folder() == Path("/a")
    monkeypatch.setenv("NNLITE_CACHE", "")
    assert fer2013.cache_folder() == Path("/b/nnlite")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fer2013.cache_folder() == tmp_path / ".cache" / "nnlite"


def test_cache_that_cannot_be_made(tmp_path, cache):
    cache.write_text("a file where the folder should be")
    path = wrapped(tmp_path / "f.csv", text(table(6)).encode())
    with pytest.raises(NnliteError, match=r"cache: expected a cache folder that can be made \(NNLITE_CACHE"):
        fer2013.read(path)


def test_progress(tmp_path, capsys):
    for seed, (progress, shown) in enumerate(((True, True), (False, False), (None, False))):  # no terminal here
        path = wrapped(tmp_path / f"f{seed}.csv.gz", text(table(6)).encode())
        fer2013.read(path, progress=progress)
        assert ("100%" in capsys.readouterr().err) == shown


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(error, tmp_path, cache, monkeypatch):
    original, calls = fer2013._append, []

    def interrupted(*arguments):
        original(*arguments)
        calls.append(list(cache.iterdir()))
        if len(calls) == 2:
            raise error

    monkeypatch.setattr(fer2013, "ROWS_AT_ONCE", 4)
    monkeypatch.setattr(fer2013, "_append", interrupted)
    path = wrapped(tmp_path / "f.csv.gz", text(table(12)).encode())
    with pytest.raises(error):
        fer2013.read(path)
    assert len(calls[0]) == 1 and not list(cache.iterdir())


# -- bad input --------------------------------------------------------------------------------------------------------


def change(row, place, value):
    """The CSV with one field of data row `row` (from 0) changed; value: text, or a function of the old text."""
    def content():
        rows = [list(fields) for fields in table(12)]
        rows[row][place] = value(rows[row][place]) if callable(value) else value
        return text(rows).encode()
    return content


def words(edit):
    def of(pixels):
        parts = pixels.split()
        edit(parts)
        return " ".join(parts)
    return of


def replaced(place, value):
    return words(lambda parts: parts.__setitem__(place, value))


BAD = {
    "too few pixels": (change(3, 1, words(lambda parts: parts.pop())), "line 5: expected 2304 pixels, got 2303"),
    "too many pixels": (change(0, 1, words(lambda parts: parts.append("7"))), "line 2: expected 2304 pixels, got 2305"),
    "no pixels": (change(11, 1, ""), "line 13: expected 2304 pixels, got 0"),
    "256": (change(4, 1, replaced(2303, "256")), "line 6: expected pixels from 0 to 255, got 256"),
    "wraps to 50 in 16 bits": (change(4, 1, replaced(0, "65586")), "line 6: expected pixels from 0 to 255, got 65586"),
    "beyond 64 bits": (change(4, 1, replaced(0, str(2 ** 64 + 5))), "line 6: expected pixels from 0 to 255, got"),
    "negative": (change(4, 1, replaced(9, "-1")), "line 6: expected pixels from 0 to 255, got '-1'"),
    "two in one": (change(4, 1, words(lambda p: p.__setitem__(slice(9, 11), ["7+8"]))), "line 6: .* got '7\\+8'"),
    "a fraction": (change(4, 1, replaced(9, "1.5")), "line 6: expected pixels from 0 to 255, got '1.5'"),
    "a word": (change(4, 1, replaced(9, "nan")), "line 6: expected pixels from 0 to 255, got 'nan'"),
    "other digits": (change(4, 1, replaced(9, "\u0663")), "line 6: expected pixels from 0 to 255, got '\u0663'"),
    "emotion 7": (change(5, 0, "7"), "line 7: expected an emotion from 0 to 6, got '7'"),
    "emotion in words": (change(5, 0, "happy"), "line 7: expected an emotion from 0 to 6, got 'happy'"),
    "no emotion": (change(5, 0, ""), "line 7: expected an emotion from 0 to 6, got ''"),
    "unknown usage": (change(6, 2, "Test"), "line 8: expected a usage Training, PublicTest, PrivateTest, got 'Test'"),
    "missing field": (lambda: text(table(3)).encode() + b"3,1 2 3\n", "line 5: expected 3 columns, got 2"),
    "one field more": (change(1, 2, "Training,7"), "line 3: expected 3 columns, got 4"),
    "cut off": (lambda: text(table(3)).encode()[:-4000], "line 4: expected 3 columns, got 2"),
    "no usage column": (lambda: text(table(3), header="emotion,pixels").encode(),
                        "line 1: expected a column 'Usage', got emotion,pixels"),
    "no header": (lambda: text(table(3)).encode().partition(b"\n")[2], "line 1: expected a column 'emotion', got"),
    "empty": (lambda: b"", "expected a header emotion,pixels,Usage, got an empty file"),
    "header alone": (lambda: b"emotion,pixels,Usage\n", "expected a row of usage Training, got none"),
    "nothing to train on": (lambda: text(table(3, usages=("PublicTest",))).encode(), "a row of usage Training"),
    "not text": (lambda: text(table(3)).encode() + b"\xff\xfe\x00", "line .: expected lines of comma-separated text"),
    "open quotes": (lambda: text(table(40)).encode().replace(b"\n0,", b'\n"0,'), "line .*: expected "),
}


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.tar.gz"])
@pytest.mark.parametrize("case", BAD)
def test_bad_rows(case, name, tmp_path, cache):
    content, sentence = BAD[case]
    wrapped(tmp_path / name, content())
    with pytest.raises(NnliteError, match=sentence) as error:
        images.read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))
    assert not list(cache.iterdir())


def packed():
    return gzip.compress(text(table(12)).encode())


FILES = {
    "truncated.csv.gz": (lambda: packed()[:-9], "expected a whole gzip file, got one that is truncated or damaged"),
    "half.csv.gz": (lambda: packed()[:20000], "expected a whole gzip file, got one that is truncated or damaged"),
    "flipped.csv.gz": (lambda: packed()[:5000] + b"\0" * 40 + packed()[5040:], "expected .*, got"),
    "checksum.csv.gz": (lambda: packed()[:-8] + b"\0" * 8, "expected a whole gzip file, got one that is damaged"),
    "plain.csv.gz": (lambda: text(table(3)).encode(), "expected a whole gzip file, got one that is damaged, or none"),
    "empty.csv.gz": (lambda: b"", "expected a header emotion,pixels,Usage, got an empty file"),
    "packed.csv": (packed, "line 1: expected lines of comma-separated text"),
    "other.tar.gz": (lambda: archive(b"x", "fer2013/train.csv"), "an archive with a fer2013.csv in it, got none"),
    "truncated.tar.gz": (lambda: archive(text(table(12)).encode())[:20000], "expected a whole gzip file, got one that"),
    "notar.tar.gz": (packed, "expected a tar archive packed by gzip, got one that is truncated, or none"),
    "nogzip.tgz": (lambda: b"hello" * 300, "expected a whole gzip file, got one that is damaged, or none"),
    "cut.tar.gz": (lambda: gzip.compress(gzip.decompress(archive(text(table(12)).encode()))[:30000]), "expected "),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files(name, tmp_path, cache):
    content, sentence = FILES[name]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(NnliteError, match=sentence) as error:
        images.read(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)
    assert not list(cache.iterdir())


# -- the published file -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = SHARED / "fer2013.csv.gz"
    if not path.exists():
        pytest.skip("shared/data/fer2013.csv.gz is not here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NNLITE_CACHE", str(tmp_path_factory.mktemp("published")))
        return images.read(path)


def test_published_make_up(published):
    assert published.images.shape == (32298, 48, 48, 1)
    assert [len(published.split[name]) for name in ("train", "validation", "test")] == [25838, 2871, 3589]
    assert "private" not in published.split
    training = np.concatenate([published.split["train"], published.split["validation"]])
    assert np.bincount(published.labels[training]).tolist() == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    for name in ("train", "validation"):
        share = np.bincount(published.labels[published.split[name]]) / len(published.split[name])
        np.testing.assert_allclose(share, np.bincount(published.labels[training]) / len(training), atol=2e-3)
    mean, std = images.statistics(published.images, np.sort(training))
    assert mean[0] == pytest.approx(0.5077, abs=2e-4) and std[0] == pytest.approx(0.2551, abs=2e-4)


def test_published_rows_are_read_as_they_stand(published):
    with gzip.open(SHARED / "fer2013.csv.gz", "rt") as file:
        next(file)
        for i, line in zip(range(2000), file):
            if i % 400 == 3:
                emotion, pixels, usage = line.rstrip().split(",")
                assert [int(word) for word in pixels.split()] == published.images[i].ravel().tolist()
                assert int(emotion) == published.labels[i] and usage == "Training"


def test_published_copies_do_not_leak(published):
    counts = Counter(image.tobytes() for image in published.images)
    assert sum(count - 1 for count in counts.values()) > 1000
    train = {published.images[row].tobytes() for row in published.split["train"]}
    assert not any(published.images[row].tobytes() in train for row in published.split["validation"])
