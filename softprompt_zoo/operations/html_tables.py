"""HTML tables, for pages and notebooks."""

import html
from collections.abc import Sequence


def html_table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]], level: int = 3) -> str:
    """Write a table, with all text escaped.

    Args:
        title: The heading above it; empty for none.
        head: The cells of its header row.
        lines: Its rows, with the same number of cells each.
        level: Level of the heading.

    Returns:
        The HTML, as a part of a page.
    """
    rows = [_row("th", head), *(_row("td", line) for line in lines)]
    heading = f"<h{level}>{html.escape(title)}</h{level}>" if title else ""
    return f"{heading}<table>{''.join(rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
