"""Makes the README the front page: `<!-- the README -->` becomes its text, with links that lead from the docs."""

from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
MARK = "<!-- the README -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Replace the mark; mkdocs calls it for every page."""
    return markdown.replace(MARK, README.read_text("utf-8").replace("](docs/", "]("))
