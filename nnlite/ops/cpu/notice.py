"""A line of text before a wait: a kernel is compiled once for a machine and a dtype, then read from a cache."""

import sys

from numba.core import event


class CompilationNotice(event.Listener):
    """Says on standard error which kernel is being compiled."""

    def on_start(self, event):
        dispatcher = event.data["dispatcher"]
        if dispatcher.__module__.startswith(__package__) and dispatcher.targetoptions.get("parallel"):
            dtype = next((str(argument.dtype) for argument in event.data["args"] if hasattr(argument, "dtype")), "")
            print(f"nnlite: compiling {dispatcher.__name__} ({dtype}), once for this machine", file=sys.stderr,
                  flush=True)

    def on_end(self, event):
        pass


def announce_compilation():
    event.register("numba:compile", CompilationNotice())
