"""`python -m decode` is `decode`; `torchrun -m decode train` runs one training on several GPUs.

Ctrl-C ends any command with exit code 130, SIGTERM, which batch schedulers send, with 143; what was
being written is deleted.  A second signal ends it at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal asks the command to end."""


def main() -> None:
    """The entry point of the command line."""
    # while the command line itself is imported there is nothing to clean up, and no traceback to
    # show
    _answer(signal.SIG_DFL)
    from decode.cli import app

    number = 0
    try:
        _answer(_stop)
        app(prog_name="decode")
    except Stopped as stopped:
        print("decode: stopped", file=sys.stderr)
        number = stopped.args[0]
    # not within the block, whose error keeps half-written files open
    if number:
        sys.exit(128 + number)


def _answer(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set the handler of the signals, except of those that the shell has us ignore (nohup, `&` in a
    script)."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


if __name__ == "__main__":
    main()
