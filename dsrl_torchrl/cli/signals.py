"""Ctrl-C and SIGTERM: the command ends in one line, and with 128 plus the signal's number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: What a command that was cut short says: whatever step it was, and however far.
RESUME = "`resume=true` goes on where there is a checkpoint"


class Interruption:
    """Answers both signals.

    The first one raises ``KeyboardInterrupt`` in the main thread, so that envs and files are closed. A second one, and
    any before the work has begun, ends the process at once: an import or a clean-up that is interrupted would print
    tracebacks of its own. Workers end with this process, and files are written whole or not at all.

    A signal that is ignored stays so: the shell ignores Ctrl-C for commands in the background.

    Args:
        may_exit: whether the process is the command's; if it is somebody else's (a notebook's), every signal raises
            ``KeyboardInterrupt``.
    """

    def __init__(self, *, may_exit: bool = True) -> None:
        self.may_exit = may_exit
        #: The signal that came.
        self.received: int | None = None
        #: Whether there is anything to close.
        self.working = False
        self._telling = self._told = False
        self._before: dict[int, Any] = {}
        self._hook_before = sys.unraisablehook

    def take(self) -> None:
        """Takes the signals, where this is the main thread."""
        with contextlib.suppress(ValueError):  # another thread
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            sys.unraisablehook = self._handle_lost

    def restore(self) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._hook_before

    def tell(self) -> None:
        """Prints the line, once."""
        if not self._telling:
            self._telling = True
            word = "interrupted" if self.received == signal.SIGINT else "ended by SIGTERM"
            with contextlib.suppress(OSError):  # stderr may be closed
                os.write(2, f"\ndsrl: {word}; {RESUME}\n".encode())
            self._told = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = number if self.received is None else self.received
        if not self.may_exit or (first and self.working):
            raise KeyboardInterrupt
        if self._telling and not self._told:
            return  # it came in the middle of that, and the end is near
        self.tell()
        os._exit(128 + self.received)

    def _handle_lost(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Sends the signal again if it came in a finaliser or in a weak reference's callback, which nothing leaves."""
        if self.received is None or not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook_before(unraisable)
            return
        again = threading.Timer(0.01, os.kill, [os.getpid(), self.received])  # not now: this is such a place, too
        self.received = None
        again.daemon = True
        again.start()
