"""The errors that this package raises for input, files and settings, and how a notebook shows them.

A message is written to a person: what is wrong, in which file of which patient, and what to do.
"""

from __future__ import annotations

import sys


class BratsError(Exception):
    """A problem that the reader of the message can solve; anything else that is raised is our bug."""


class Stopped(BratsError):
    """The user pressed stop; the message says what is saved and how to go on."""


def short_messages() -> None:
    """In a notebook, show our errors and the stop button as one message, without the traceback; elsewhere do nothing."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        shell.set_custom_exc((BratsError, KeyboardInterrupt), _show)


def _show(shell: object, kind: type, value: BaseException, trace: object, tb_offset: int | None = None) -> list[str]:
    said = str(value) or "stopped. What is finished is kept: run this cell again to go on."
    shell._showtraceback(kind, value, [f"{kind.__name__}: {said}"])      # IPython's own way to a cell's error output
    return []
