"""`python -m jobrunner`, and the command `jobrunner`: Ctrl-C ends it without a word, also while it is being loaded."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line on this process's arguments; return its exit code."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # else somebody has said otherwise: a shell, of a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jobrunner.cli.main import main as run  # noqa: PLC0415 - takes a while, in which Ctrl-C is no traceback

    signal.signal(signal.SIGINT, usual)
    code = run()
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python takes a while to end, too
    return code


if __name__ == "__main__":
    sys.exit(main())
