"""The errors that this package raises, how a notebook shows them, and how a user stops it.

A message is written to a person: what is wrong, in which file of which patient, and what to do.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class BratsError(Exception):
    """A problem that the reader of the message can solve; any other exception is our bug."""


class Stopped(BratsError):
    """A stop by the user; the message says what is saved and how to go on."""


@contextmanager
def stop_button() -> Iterator[Callable[[], bool]]:
    """Record Ctrl-C or a notebook's stop button, so that no step is left half done.

    Yields a function that tells whether it was pressed. A second press raises at once.
    """
    pressed: list[int] = []

    def note(number: int, _: object) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only it receives signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def short_messages() -> None:
    """Show our errors and the stop button in a notebook as one message without a traceback."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        shell.set_custom_exc((BratsError, KeyboardInterrupt), _show)


def _show(shell: Any, kind: type, value: BaseException, trace: object, tb_offset: int | None = None
          ) -> list[str]:
    message = str(value) or "stopped. What is finished is kept: run this cell again to go on."
    # IPython's hook. A message on stderr alone would leave papermill no error output to fail on.
    value._render_traceback_ = lambda: [f"{kind.__name__}: {message}"]
    shell.showtraceback((kind, value, trace))
    return []
