"""A notebook shows our errors in one line, and still counts the cell as failed."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


@pytest.mark.parametrize(("statement", "message"), [
    ("raise errors.BratsError('no such patient')", "BratsError: no such patient"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt: stopped. What is finished is kept")])
def test_a_cell_fails_with_one_line_instead_of_a_traceback(statement: str, message: str) -> None:
    cell = nbformat.v4.new_code_cell(
        f"from brats_helpers.basics import errors\nerrors.short_messages()\n{statement}")
    with pytest.raises(CellExecutionError, match=message):
        NotebookClient(nbformat.v4.new_notebook(cells=[cell]), kernel_name="python3").execute()
    (error,) = cell.outputs  # papermill looks for this output
    assert error.output_type == "error" and len(error.traceback) == 1
    assert error.traceback[0].startswith(message)
