"""How a command ends: with an exit code and at most one sentence, whatever happens."""

import os
import signal
import sys

from .errors import NnliteError

BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


def run(work):
    """work() -> exit code; bad input (NnliteError, a file or folder that the system refuses, sizes that no memory
    holds) becomes one sentence on standard error and exit code 2."""
    try:
        return work()
    except NnliteError as error:
        return _say(error, BAD_INPUT)
    except BrokenPipeError:   # | head
        sys.stdout = open(os.devnull, "w")
        return CLOSED_PIPE
    except OSError as error:
        return _say(f"{error.filename or 'the disk'}: expected a file or folder that can be used, got "
                    f"{error.strerror or error}", BAD_INPUT)
    except MemoryError as error:
        return _say(f"memory: expected room for the arrays of this run, got none ({error})", BAD_INPUT)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)


class Interrupts:
    """Ctrl-C asks to stop behind the present step; a second one stops at once."""

    def __enter__(self):
        self.asked = False
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, self._before)

    def __exit__(self, *error):
        signal.signal(signal.SIGINT, self._before)


def _say(sentence, code):
    print(f"nnlite: {sentence}", file=sys.stderr)
    return code
