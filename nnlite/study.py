"""The study of a TPE search: one file, shared by several processes, each of which may be killed at any moment.

Optuna (extra `search`) draws the settings by the tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms
for hyper-parameter optimization") and keeps the trials in a journal, to which every process appends lines:

    FILE            the journal: Optuna and its tools can read it
    FILE.workers    empty; while a process trains trial n it holds a lock on a byte of this file that stands for n

The system lifts the locks of a process when it ends, however it ends: a trial that is running in the journal and that
nobody holds was being trained when its process was killed.
"""

import contextlib
import math
import os
import pathlib
import time
import warnings

from . import space as space_
from .errors import NnliteError, expected
from .files import replacing
from .ops.reference import ReferenceOps
from .rng import Rng

try:
    import fcntl
except ImportError:   # Windows
    fcntl = None
    import msvcrt

NAME = "nnlite"                        # of the study, and of what belongs to nnlite in it
JOURNAL, DRAWING, FIRST = 0, 1, 2      # bytes of FILE.workers: who appends, who draws settings, who trains trial 0, ...
LEAST = 5                              # trials that importances are computed from


def missing_extra():
    """What a TPE search lacks, in a sentence; None where Optuna is there."""
    try:
        _optuna()
    except NnliteError as error:
        return str(error)
    return None


def _optuna():
    try:
        import optuna
    except ImportError:
        raise expected("--method tpe", "the package optuna", 'none: pip install -e ".[search]" brings it') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Locks:
    """Locks on single bytes of a file that is made when the first is taken."""

    def __init__(self, path):
        self.path, self.file = path, None

    def take(self, byte):
        """Whether this process holds the byte now. The locks of one process do not keep itself out."""
        self.file = self.file or open(self.path, "ab+")
        try:
            if fcntl:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            else:
                self.file.seek(byte)
                msvcrt.locking(self.file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, byte):
        if fcntl:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, byte)
        else:
            self.file.seek(byte)
            msvcrt.locking(self.file.fileno(), msvcrt.LK_UNLCK, 1)

    @contextlib.contextmanager
    def held(self, byte):
        """Waits for the byte."""
        while not self.take(byte):
            time.sleep(0.002)
        try:
            yield
        finally:
            self.release(byte)


class JournalLock:
    """What Optuna asks before it appends to the journal at path, and when it has: only one process at a time.

    Half a line, as a kill or a full disk leaves behind, is cut off first: what is appended to it could not be read.
    """

    def __init__(self, path, locks):
        self.path, self.locks, self.lock = path, locks, None

    def acquire(self):
        self.lock = self.locks.held(JOURNAL)
        self.lock.__enter__()
        with open(self.path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if file.read(1) not in (b"\n", b""):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self):
        self.lock.__exit__(None, None, None)


class Study:
    """The study in the file at path.

    about: {key: value} of what all its trials have in common; space: of nnlite.space; seed: of the draws. A trial of
    nnlite's has a number from 1, and what is kept of it when it has come to its end is a dict, its record. In Optuna's
    words a trial with a score is complete, one whose loss became NaN or infinite is pruned (which TPE counts as worse
    than all complete ones), and one whose process was killed has failed.
    """

    def __init__(self, path, about, space, seed):
        self.path, self.about, self.space, self.seed = pathlib.Path(path), about, space, seed
        self.locks, self.study, self.claimed = Locks(f"{path}.workers"), None, {}

    # -- the file ------------------------------------------------------------------------------------------------

    def create(self):
        """Make the file, without a trial."""
        optuna = _optuna()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise expected(self.path.parent, "a folder that can be made", error.strerror) from None
        with replacing(self.path) as temporary:
            study = optuna.create_study(storage=_journal(temporary), study_name=NAME, direction="maximize")
            study.set_user_attr(NAME, self.about)

    def open(self):
        """Open the file; raises NnliteError, and changes nothing, where it holds no study or one of something else."""
        optuna = _optuna()
        what = "a study of nnlite in a journal of Optuna"
        if not self.path.is_file():
            raise expected(self.path, what, "a folder" if self.path.is_dir() else "none")
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise expected(self.path, "a file that can be read and written", "one that cannot")
        try:
            storage = _journal(self.path, JournalLock(self.path, self.locks))
            names = [study.study_name for study in storage.get_all_studies()]
            self.study = optuna.load_study(study_name=names[0], storage=storage) if len(names) == 1 else None
            about = self.study and self.study.user_attrs.get(NAME)
        except Exception as error:   # whatever Optuna makes of a file that is something else
            raise expected(self.path, what, f"a file that cannot be read as one ({_first_line(error)})") from None
        if not isinstance(about, dict):
            raise expected(self.path, what, f"one without a trace of nnlite ({', '.join(names) or 'no study'})")
        for key, own in self.about.items():
            if about.get(key) != own:
                raise expected(self.path, f"a study of {key} {_said(own, about.get(key))}",
                               f"one of {_said(about.get(key), own)}")

    def records(self):
        """The records of the trials that came to their end, in the order of their numbers."""
        done = [trial.user_attrs[NAME] for trial in self._trials("COMPLETE", "PRUNED") if NAME in trial.user_attrs]
        return sorted(done, key=lambda record: record["number"])

    def _trials(self, *states):
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.name in states]

    # -- trials --------------------------------------------------------------------------------------------------

    def claim(self, count):
        """(number, settings) of a trial that this process is to train now, or None where `count` have come to their
        end or are being trained. The settings of one whose process was killed come again.

        The sampler is seeded by (seed, number): one process alone draws the same settings, stopped or not.
        """
        with self.locks.held(DRAWING):
            self._fail_stale()
            taken = {trial.user_attrs.get("number") for trial in self._trials("RUNNING", "COMPLETE", "PRUNED")}
            number = next((number for number in range(1, count + 1) if number not in taken), None)
            if number is None:
                return None
            again = [trial for trial in self._trials("FAIL") if trial.user_attrs.get("number") == number]
            if again and not self._trials("WAITING"):
                self.study.enqueue_trial(again[0].params, user_attrs={"number": number})
            self.study.sampler = _sampler(self.seed, number)
            trial = self.study.ask({name: distribution(part) for name, part in self.space.items()})
            number = trial.user_attrs.get("number", number)
            trial.set_user_attr("number", number)
            self.locks.take(FIRST + trial.number)
            self.claimed[number] = trial
            return number, {name: value_of(part, trial.params[name]) for name, part in self.space.items()}

    def _fail_stale(self):
        mine = {trial.number for trial in self.claimed.values()}
        for trial in self._trials("RUNNING"):
            if trial.number not in mine and self.locks.take(FIRST + trial.number):
                self.study.tell(trial.number, state=_optuna().trial.TrialState.FAIL)
                self.locks.release(FIRST + trial.number)

    def running(self):
        """How many trials other processes are training."""
        mine = {trial.number for trial in self.claimed.values()}
        return sum(trial.number not in mine for trial in self._trials("RUNNING"))

    def tell(self, record):
        """Keep the record {"number", "score", ...} of a claimed trial; score None: it failed."""
        trial = self.claimed.pop(record["number"])
        trial.set_user_attr(NAME, record)
        if record["score"] is None:
            self.study.tell(trial, state=_optuna().trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, record["score"])
        self.locks.release(FIRST + trial.number)


def _journal(path, lock=None):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _sampler(seed, number):
    rng = Rng(ReferenceOps(), seed)
    rng.set_step(number)
    word = int(rng.ops.random_words(1, 1, rng.key("search tpe"))[0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # constant_liar is experimental in some versions
        # Trials that others are training count as bad ones: two processes do not crowd at one place.
        return _optuna().samplers.TPESampler(seed=word, constant_liar=True)


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def _said(value, other):
    """A value for an error; of a dict what differs from the other."""
    if not isinstance(value, dict):
        return "none" if value is None else str(value)
    other = other if isinstance(other, dict) else {}
    return " ".join(f"{key}={space_.spell(v)}" for key, v in value.items() if other.get(key) != v) or "less"


# -- a space in Optuna's words -----------------------------------------------------------------------------------------


def distribution(part):
    """Optuna's distribution for a Range, Steps or Choice; values of a choice as text."""
    of = _optuna().distributions
    if isinstance(part, space_.Choice):
        return of.CategoricalDistribution([space_.spell(value) for value in part.values])
    kind = of.IntDistribution if isinstance(part.low, int) else of.FloatDistribution
    if isinstance(part, space_.Steps):
        return kind(part.low, part.high, step=part.step)
    return kind(part.low, part.high, log=part.log)


def value_of(part, value):
    """The setting for a value that Optuna drew: of a range rounded to four digits, as all that are printed."""
    if isinstance(part, space_.Choice):
        return next(own for own in part.values if space_.spell(own) == value)
    if isinstance(part, space_.Steps):
        return min(part.axis(), key=lambda own: abs(own - value))
    return value if part.whole else min(max(float(f"{value:.4g}"), part.low), part.high)


def importances(settings, scores, space):
    """{setting: share}: how much of the variance of the score over the space each setting explains by itself, the
    largest first; {} for fewer than LEAST trials, or scores that are all the same.

    settings: a dict for each trial; scores (n,). Functional ANOVA on a random forest of 64 trees (Hutter et al. 2014,
    "An efficient approach for assessing hyperparameter importance"); what is missing to 1 several settings explain
    together. (Optuna's PED-ANOVA asks which settings lead to the best tenth: of 15 to 50 trials two to five.) Needs
    Optuna and scikit-learn.
    """
    if len(scores) < LEAST or len(set(scores)) == 1:
        return {}
    optuna = _optuna()
    parts = {name: _even(part) for name, part in space.items()}
    study = optuna.create_study(direction="maximize")
    for chosen, score in zip(settings, scores):
        values = {name: _on_even(part, chosen[name]) for name, part in space.items()}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=parts, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # normalize is experimental in some versions
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, normalize=False)
    return {name: float(share) for name, share in found.items()}


def _even(part):
    """The part as a distribution over which fANOVA's average is that of the search: Optuna takes a logarithmic one for
    a uniform one there, whose largest power of ten is nine tenths of it."""
    if isinstance(part, space_.Choice):
        return distribution(part)
    return _optuna().distributions.FloatDistribution(_on_even(part, part.low), _on_even(part, part.high))


def _on_even(part, value):
    if isinstance(part, space_.Choice):
        return space_.spell(value)
    return math.log(value) if part.log else float(value)
