"""Puts the benchmarks' results into the pages: `<!-- results of NAME -->` becomes its table, pictures and pages."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MARK = re.compile(r"<!-- results of (\w+) -->")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Replace the marks; mkdocs calls it for every page."""
    return MARK.sub(lambda match: results(match[1], page.file.src_uri.count("/")), markdown)


def on_files(files: Any, config: Any, **kwargs: Any) -> Any:
    """Add the pictures and pages, which lie outside the docs."""
    for made in (*RESULTS.glob("*/*.png"), *RESULTS.glob("*/*.html")):
        files.append(File.generated(config, f"assets/{made.name}", abs_src_path=str(made)))
    return files


def results(name: str, depth: int) -> str:
    """Return what a benchmark has left in its folder, as Markdown for a page so many folders deep."""
    table = RESULTS / name / "table.md"
    if not table.is_file():
        return "*Nothing is measured yet.*"
    pictures = [
        f"![The results of the {picture.stem}]({'../' * depth}assets/{picture.name})"
        for picture in sorted(table.parent.glob("*.png"))
    ]
    pages = [
        f"[All of it, cell by cell]({'../' * depth}assets/{page.name})" for page in sorted(table.parent.glob("*.html"))
    ]
    return "\n\n".join([*pictures, *pages, table.read_text("utf-8")])
