"""Draws the rooms of the package: `<!-- the rooms -->` becomes a picture and a table, read from the source."""

import ast
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "<!-- the rooms -->"
WIDTH, HEIGHT, GAP = 680, 34, 8
"""Of the picture, of a room, and between rooms, in pixels."""


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Replace the mark; mkdocs calls it for every page."""
    return markdown.replace(MARK, f"{picture()}\n\n{table()}") if MARK in markdown else markdown


def layers() -> list[list[str]]:
    """Return the rooms as the import contract has them, from the top to the bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    [contract] = [contract for contract in settings["contracts"] if contract["type"] == "layers"]
    return [layer.split(" | ") for layer in contract["layers"]]


def picture() -> str:
    """Draw a row for each layer."""
    shapes = []
    for row, rooms in enumerate(layers()):
        top, width = row * (HEIGHT + GAP) + 1, (WIDTH - 2 - (len(rooms) - 1) * GAP) / len(rooms)
        for column, room in enumerate(rooms):
            left = 1 + column * (width + GAP)
            shapes.append(
                f'<rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" rx="6" '
                'stroke="currentColor" fill="none"/>'
                f'<text x="{left + width / 2}" y="{top + 22}" text-anchor="middle">{room}</text>'
            )
    size = f"0 0 {WIDTH} {len(layers()) * (HEIGHT + GAP)}"
    label = "The rooms of the package in layers; a room imports from those below it"
    return (
        f'<figure class="placement"><svg viewBox="{size}" role="img" aria-label="{label}" font-family="sans-serif" '
        f'font-size="14" fill="currentColor">{"".join(shapes)}</svg>'
        "<figcaption>A room may import from all rooms below it, from none next to it or above.</figcaption></figure>"
    )


def table() -> str:
    """List the rooms with what they say of themselves."""
    lines = ["| room | what is in it |", "| --- | --- |"]
    for room in (room for rooms in layers() for room in rooms):
        path = ROOT / "softprompt_zoo" / room
        is_folder = path.is_dir()
        said = ast.get_docstring(
            ast.parse((path / "__init__.py" if is_folder else path.with_suffix(".py")).read_text())
        )
        lines.append(
            f"| `{room}{'/' if is_folder else '.py'}` | {' '.join((said or '').split(chr(10) * 2)[0].split())} |"
        )
    return "\n".join(lines)
