"""The notebooks of the docs run, and print what they show."""

import asyncio
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NUMBER = re.compile(r"\d+(?:\.\d+)?")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs").rglob("*.ipynb"))


def said(cell):
    """Return what a cell printed, and the value of its last line, as text; warnings and progress are left out."""
    printed = [output["text"] for output in cell.outputs if output.get("name") == "stdout"]
    values = [output["data"]["text/plain"] for output in cell.outputs if output["output_type"] == "execute_result"]
    return printed + values


def without_numbers(text):
    """Return a text without its numbers and with single spaces: a longer number moves what follows it."""
    return re.sub(r"[ ─━]+", " ", NUMBER.sub("…", text))


def check_same(ran, shown):
    """Check that the words are equal; numbers may differ by a hundredth, as other machines round differently."""
    assert [*map(without_numbers, ran)] == [*map(without_numbers, shown)]
    numbers, expected = ([float(number) for text in told for number in NUMBER.findall(text)] for told in (ran, shown))
    assert numbers == pytest.approx(expected, rel=0.01, abs=0.01)


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
    for old, new in code:
        check_same(said(new), said(old))
