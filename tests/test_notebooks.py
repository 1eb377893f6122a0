"""The notebooks of the docs run, and say what they show."""

import asyncio
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

MEASURED = re.compile(r"\d+\.\d+|\d+%")
"""Numbers whose last digits are the machine's."""
NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs").rglob("*.ipynb"))


def said(cell):
    """What a cell printed, and the value of its last line, as text; warnings and progress are left out."""
    printed = [output["text"] for output in cell.outputs if output.get("name") == "stdout"]
    values = [output["data"]["text/plain"] for output in cell.outputs if output["output_type"] == "execute_result"]
    return [MEASURED.sub("…", text) for text in printed + values]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_it_shows(path, tmp_path):
    shown = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    for cell in run.cells:
        cell.update({"outputs": []} if cell.cell_type == "code" else {})
    client = NotebookClient(run, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(client.async_execute())
    code = [(old, new) for old, new in zip(shown.cells, run.cells, strict=True) if old.cell_type == "code"]
    assert any(said(old) for old, _ in code)
    assert [said(new) for _, new in code] == [said(old) for old, _ in code]
