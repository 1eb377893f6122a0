"""Makes a page of each notebook, out of its texts, its code and what that showed when it was run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File
from nbformat import NotebookNode

DOWNLOAD = '<a class="md-button" href="../{name}" download>Download this notebook</a>'
LINK = re.compile(r"(\]\([^)]*)\.ipynb\)")


def on_files(files: Any, config: Any, **kwargs: Any) -> Any:
    """Add a page next to each notebook; mkdocs calls it once for each site."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(notebook.abs_src_path)
        page = str(Path(notebook.src_uri).with_suffix(".md"))
        files.append(File.generated(config, page, content=markdown(nbformat.read(path, as_version=4), path.name)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Lead links to a notebook, which work in the repository, to its page; mkdocs calls it for every page."""
    return LINK.sub(r"\1.md)", markdown)


def markdown(notebook: NotebookNode, name: str) -> str:
    """Write a notebook as the other pages are written."""
    parts = []
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else fenced(cell.source, "python"))
        parts += [part for output in cell.get("outputs", []) for part in shown(output)]
    return "\n\n".join([*parts, DOWNLOAD.format(name=name)])


def shown(output: NotebookNode) -> Iterator[str]:
    """Return what a reader of the notebook sees of an output: its HTML if there is some, else its text."""
    data = output.get("data", {})
    if "text/html" in data:
        lines = "".join(
            line.strip() for line in data["text/html"].splitlines()
        )  # Markdown reads indented lines as code
        yield f'<div class="output">{lines}</div>'
    elif text := output.get("text", data.get("text/plain", "")):
        yield fenced(text.rstrip("\n"), 'text title="Output"')


def fenced(text: str, kind: str) -> str:
    """Write a block of code."""
    return f"```{kind}\n{text}\n```"
