"""The errors that this package raises for input, files and settings, and how a notebook shows them.

A message is written to a person: what is wrong, in which file of which patient, and what to do.
"""

from __future__ import annotations

import sys
from typing import Any


class BratsError(Exception):
    """A problem that the reader of the message can solve; any other exception is our bug."""


class Stopped(BratsError):
    """A stop by the user; the message says what is saved and how to go on."""


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
