"""Tables as HTML: on pages that are written, and in notebooks."""

import html
from collections.abc import Sequence


def html_table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]], level: int = 3) -> str:
    """Write a table, with all text escaped.

    Args:
        title: What stands above it; empty for nothing.
        head: The cells of its head.
        lines: Its lines, of as many cells each.
        level: Of the title's heading.

    Returns:
        HTML, a part of a page.
    """
    rows = [_row("th", head), *(_row("td", line) for line in lines)]
    heading = f"<h{level}>{html.escape(title)}</h{level}>" if title else ""
    return f"{heading}<table>{''.join(rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
