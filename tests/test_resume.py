"""A run that is stopped, in whatever way, and resumed ends as one that was never stopped, bit for bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import small_runs
from nnlite import train
from nnlite.errors import NnliteError
from nnlite.experiments import face_options
from small_runs import contents, make_run, metrics, options, outcome, posed_file, snapshot

CADENCE = {"iterations": 14, "validate_every": 4, "checkpoint_every": 3}
context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
context.set_forkserver_preload(["small_runs"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return posed_file(tmp_path_factory.mktemp("data") / "faces.h5")


def start(arguments, output, kill_at=None):
    process = context.Process(target=small_runs.work, args=([str(word) for word in arguments], str(output), kill_at))
    process.start()
    return process


def finish(arguments, output, kill_at=None):
    process = start(arguments, output, kill_at)
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module")
def never_stopped(data, tmp_path_factory):
    """model -> outcome of the run that nobody stopped."""
    found = {}

    def of(model):
        if model not in found:
            out = tmp_path_factory.mktemp("straight") / model
            assert finish(options(data, out, model, **CADENCE), f"{out}.txt") == 0
            found[model] = outcome(out)
        return found[model]
    return of


# Which time of each point: early ones, ones in the middle, the last. A step is 1 of 14; a file that is renamed is
# config.json, metrics.jsonl (once), then best.h5 and last.h5 as they come due.
KILLS = [("before a step", 1), ("before a step", 5), ("behind a step", 14), ("before renaming", 2),
         ("before renaming", 3), ("before renaming", 4), ("before renaming", 5), ("behind renaming", 3),
         ("behind renaming", 4), ("half a file", 1), ("half a file", 3), ("half a file", 6), ("half a line", 1),
         ("half a line", 2), ("behind best", 1), ("behind best", 2), ("behind metrics", 1), ("behind metrics", 2),
         ("behind last", 1), ("behind last", 3), ("behind last", 5)]


@pytest.mark.parametrize("place, number", KILLS, ids=[f"{place} {number}" for place, number in KILLS])
def test_killed_at(place, number, data, never_stopped, tmp_path):
    out, text = tmp_path / "run", tmp_path / "output.txt"
    assert finish(options(data, out, **CADENCE), text, (place, number)) == -signal.SIGKILL, text.read_text()
    assert finish(["--resume", out, "--device", "reference"], text) == 0, text.read_text()
    assert outcome(out) == never_stopped("vae3")
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize("model", ["vae1", "vae2"])
def test_other_models_killed(model, data, never_stopped, tmp_path):
    out, text = tmp_path / "run", tmp_path / "output.txt"
    assert finish(options(data, out, model, **CADENCE), text, ("behind a step", 8)) == -signal.SIGKILL
    assert finish(["--resume", out, "--device", "reference"], text) == 0, text.read_text()
    assert outcome(out) == never_stopped(model)


def test_killed_again_and_again(data, never_stopped, tmp_path):
    """Each process comes a little further: one kill per process, at the second thing that it writes."""
    out, text = tmp_path / "run", tmp_path / "output.txt"
    code, processes = finish(options(data, out, **CADENCE), text, ("behind a step", 5)), 0
    while code == -signal.SIGKILL and processes < 10:
        code = finish(["--resume", out, "--device", "reference"], text, ("behind a step", 5))
        processes += 1
    assert code == 0 and processes >= 3, text.read_text()
    assert outcome(out) == never_stopped("vae3")


def test_killed_at_random_moments(data, tmp_path):
    """The clock decides; a checkpoint in each step, so that many kills meet one that is being written."""
    cadence = {"iterations": 100, "validate_every": 10, "checkpoint_every": 1}
    straight, out, text = tmp_path / "straight", tmp_path / "run", tmp_path / "output.txt"
    assert finish(options(data, straight, **cadence), text) == 0
    chance, arguments, kills = random.Random(5), options(data, out, **cadence), 0
    while True:
        process = start(arguments, text)
        deadline = time.monotonic() + 20
        while not (out / "last.h5").exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.join(chance.uniform(0.1, 0.3) if kills < 4 else 60)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        arguments = ["--resume", out, "--device", "reference"]
    assert process.exitcode == 0, text.read_text()
    assert kills >= 1
    assert outcome(out) == outcome(straight)


def test_the_cpu_kernels_resume_bit_for_bit(data, tmp_path):
    """The command itself, in processes of its own, on the fast ops."""
    def run(name):
        return options(data, tmp_path / name, device="cpu", iterations=300, validate_every=50, checkpoint_every=7)

    assert finish(run("straight"), tmp_path / "straight.txt") == 0
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen([sys.executable, "-m", "nnlite.train", *run("killed")], stdout=output,
                                   stderr=output)   # with as many threads as here: the order of sums depends on it
        while not (tmp_path / "killed" / "last.h5").exists() and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    assert finish(["--resume", tmp_path / "killed", "--device", "cpu"], tmp_path / "output.txt") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_saves(data, never_stopped, tmp_path):
    out, text = tmp_path / "run", tmp_path / "output.txt"
    slow = {"iterations": 100_000, "validate_every": 50_000, "checkpoint_every": 50_000, "anneal": 0}
    process = start(options(data, out, **slow), text)
    deadline = time.monotonic() + 20
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:   # then the loop is running
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    last = text.read_text().splitlines()[-1]
    done = contents(out / "last.h5")["@iteration"]
    assert last == (f"stopped after {done} iterations, saved; go on with: python -m nnlite.train --resume {out}")
    assert 1 <= done < 100_000
    assert "Traceback" not in text.read_text()


@pytest.mark.parametrize("asked", range(1, 10))
def test_stopping_leaves_what_was_done_saved(asked, data, never_stopped, tmp_path):
    """Whenever stop() turns true, the last finished iteration is in last.h5, and the rest of the run follows."""
    run, calls = make_run(data, tmp_path / "run", **CADENCE), []

    def stop():
        calls.append(None)
        return len(calls) >= asked
    with small_runs.quiet():
        done = train.fit(run, stop)
    assert contents(run.path / "last.h5")["@iteration"] == done < 14
    with small_runs.quiet():
        assert train.fit(make_again(run), lambda: False) == 14
    assert outcome(run.path) == never_stopped("vae3")


def make_again(run):
    from nnlite.runs import open_run
    return open_run(run.path, "reference")


def test_ctrl_c_before_training(data, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(face_options, "load_faces", interrupted)
    assert train.main(options(data, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "nnlite: interrupted\n"
    assert not (tmp_path / "run").exists()


# -- writing that fails ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [3, 4, 5, 6])
def test_a_failing_rename_leaves_the_old_file(failing, data, never_stopped, tmp_path, monkeypatch, capsys):
    """As on a full disk: one sentence, the old checkpoint whole, no temporary file; later the run goes on."""
    out, replace, calls = tmp_path / "run", os.replace, []

    def limited(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(small_runs.report, "evaluate", lambda run: None)
    monkeypatch.setattr(os, "replace", limited)
    assert train.main(options(data, out, **CADENCE)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"nnlite: {calls[-1]}: expected a place that can be")
    assert not list(out.glob("*.part"))
    monkeypatch.setattr(os, "replace", replace)
    assert train.main(["--resume", str(out), "--device", "reference"]) == 0
    assert outcome(out) == never_stopped("vae3")


def test_half_written_files_of_a_killed_process(data, never_stopped, tmp_path):
    run = make_run(data, tmp_path / "run", **CADENCE)
    with small_runs.quiet():
        train.fit(run, lambda: (run.path / "best.h5").exists())
    (run.path / "last.h5.123.part").write_bytes((run.path / "last.h5").read_bytes()[:500])
    (run.path / "best.h5.123.part").write_bytes(b"")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 8, "loss": 12')
    with small_runs.quiet():
        assert train.fit(make_again(run), lambda: False) == 14
    assert outcome(run.path) == never_stopped("vae3")
    assert not list(run.path.glob("*.part"))


def test_without_last_h5_it_begins_again(data, never_stopped, tmp_path):
    """best.h5 and metrics of the lost run do not count."""
    run = make_run(data, tmp_path / "run", **CADENCE)
    with small_runs.quiet():
        train.fit(run, lambda: False)
    (run.path / "last.h5").unlink()
    with small_runs.quiet():
        train.fit(make_again(run), lambda: False)
    assert outcome(run.path) == never_stopped("vae3")


# -- --resume as an option ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done_run(data, tmp_path_factory):
    run = make_run(data, tmp_path_factory.mktemp("done") / "run", **CADENCE)
    with small_runs.quiet():
        train.fit(run, lambda: False)
    return run.path


@pytest.fixture()
def finished(done_run, tmp_path):
    return shutil.copytree(done_run, tmp_path / "run")


def test_a_finished_run_is_only_evaluated(finished, monkeypatch, capsys):
    evaluated, before = [], snapshot(finished)
    monkeypatch.setattr(small_runs.report, "evaluate", evaluated.append)
    assert train.main(["--resume", str(finished), "--device", "reference"]) == 0
    assert len(evaluated) == 1
    assert snapshot(finished) == before


@pytest.mark.parametrize("option", [
    "--model vae3", "--preset posed-m3-kl-7", "--data x.h5", "--triplets t.h5", "--iterations 5", "--dtype float64",
    "--seed 1", "--out elsewhere", "--set samples=2", "--quick"])
def test_options_that_resume_refuses(option, finished, capsys):
    before = snapshot(finished)
    assert train.main(["--resume", str(finished), *option.split()]) == 2
    error = capsys.readouterr().err
    assert error == (f"nnlite: --resume: expected no other option than --device: the run goes on to its own end, got "
                     f"{option.split()[0]}\n")
    assert snapshot(finished) == before


def damage_last(part):
    def damage(folder):
        data = (folder / "last.h5").read_bytes()
        (folder / "last.h5").write_bytes(data[:int(part * len(data))])
    return damage


def foreign_last(folder):
    posed_file(folder / "last.h5")


def best_as_last(folder):
    shutil.copy(folder / "best.h5", folder / "last.h5")


def other_text(folder):
    (folder / "last.h5").write_text("not HDF5 at all\n")


DAMAGES = {"empty": damage_last(0), "a tenth": damage_last(0.1), "half": damage_last(0.5), "most": damage_last(0.99),
           "landmarks": foreign_last, "best.h5": best_as_last, "text": other_text}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_last_h5_changes_nothing(damage, finished, capsys):
    damage(finished)
    (finished / "best.h5.7.part").write_bytes(b"left by a killed process")
    before = snapshot(finished)
    assert train.main(["--resume", str(finished), "--device", "reference"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "it/s" not in line and line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith(f"nnlite: {finished / 'last.h5'}: expected ")
    assert snapshot(finished) == before


CONFIGS = {"half": lambda text: text[:len(text) // 2], "empty": lambda text: "", "a list": lambda text: "[]",
           "no seed": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "seed"}),
           "no batch_size": lambda text: text.replace('"batch_size"', '"batch"'),
           "no decoder": lambda text: json.dumps({**json.loads(text), "settings": {"decoder": []}}),
           "a decoder of text": lambda text: text.replace("249\n", '"wide"\n'),
           "unknown model": lambda text: text.replace('"vae3"', '"vae9"')}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_damaged_config_changes_nothing(change, finished, capsys):
    config = finished / "config.json"
    config.write_text(change(config.read_text()))
    before = snapshot(finished)
    assert train.main(["--resume", str(finished), "--device", "reference"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nnlite: {config}: ") and ": expected " in error and error.count("\n") == 1
    assert snapshot(finished) == before


def test_other_data_than_the_run_was_begun_with(data, finished, tmp_path, capsys):
    config = json.loads((finished / "config.json").read_text())
    config["data"] = str(posed_file(tmp_path / "small.h5", points=68))
    (finished / "config.json").write_text(json.dumps(config))
    assert train.main(["--resume", str(finished), "--device", "reference"]) == 2
    assert "expected faces of 249 numbers, as the run was begun with, got 204" in capsys.readouterr().err


def test_a_line_of_metrics_is_cut_only_behind_the_checkpoint(done_run):
    assert [line["iteration"] for line in metrics(done_run)] == [4, 8, 12, 14]


def test_open_run_names_the_folder(tmp_path):
    from nnlite.runs import open_run
    with pytest.raises(NnliteError, match="expected a run folder with a config.json, got none"):
        open_run(tmp_path)
