"""What `inspect` found, for users: tables in the terminal, a picture, a page."""

import base64
import dataclasses
import html
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt_zoo.files.writing import write_atomically
from softprompt_zoo.operations.html_tables import html_table
from softprompt_zoo.operations.inspection_findings import Neighbour, PromptInspection
from softprompt_zoo.operations.inspection_pictures import draw
from softprompt_zoo.shapes import Float

WIDTH = 120
"""Width of the text that `print` shows, in columns."""
Rows = tuple[list[str], list[list[str]]]
"""Header and rows of a table."""


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection:
    """The findings of `inspect`; `print` shows them as tables."""

    prompts: tuple[PromptInspection, ...]
    """The prompts in the order in which rows see them."""

    def __getitem__(self, name: str) -> PromptInspection:
        """Return the findings for one prompt, by its name."""
        for prompt in self.prompts:
            if prompt.name == name:
                return prompt
        raise KeyError(f"{name!r} was not inspected; {', '.join(repr(prompt.name) for prompt in self.prompts)} was")

    def __iter__(self) -> Iterator[PromptInspection]:
        return iter(self.prompts)

    def __str__(self) -> str:
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=WIDTH, color_system=None, force_jupyter=False).print(self)
        return file.getvalue().rstrip()

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shown = []
        for prompt in self:
            for title, (head, lines) in _tables(prompt):
                table = Table(title=Text(title), title_justify="left")
                for cell in head:
                    table.add_column(Text(cell))
                for line in lines:
                    table.add_row(*map(Text, line))
                shown.append(table)
        return Group(*shown)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return "".join(html_table(title, head, lines, 4) for one in self for title, (head, lines) in _tables(one))

    def to_png(self, path: str | os.PathLike[str]) -> None:
        """Draw norms, similarities and attention of every prompt.

        Args:
            path: The PNG file, written completely or not at all.

        Raises:
            MissingPackageError: If matplotlib is not installed.
        """
        write_atomically(Path(path), draw(self.prompts, panels_in_a_row=4))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write tables and pictures as one page that needs no network access.

        Args:
            path: The HTML file, written completely or not at all.

        Raises:
            MissingPackageError: If matplotlib is not installed.
        """
        parts = []
        for prompt in self:
            parts.append(f"<h2>{html.escape(prompt.name)}</h2>")
            picture = base64.b64encode(draw([prompt], panels_in_a_row=2)).decode()
            alt = f"norms, similarities and attention of the prompt {prompt.name}"
            parts.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}">')
            parts += [html_table(title, head, lines) for title, (head, lines) in _tables(prompt)]
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Inside the prompts</title><style>'
            "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}"
            "img{max-width:100%}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;"
            "border-bottom:1px solid #ccc;white-space:pre-wrap}th{background:#f2f2f2}</style></head><body>"
            f"<h1>Inside the prompts</h1>{''.join(parts)}</body></html>\n"
        )
        write_atomically(Path(path), page.encode())


def _tables(prompt: PromptInspection) -> list[tuple[str, Rows]]:
    """Put the findings for one prompt into tables.

    Args:
        prompt: The findings.

    Returns:
        For each table, its title, and its header and rows as text.
    """
    title = f"{prompt.name}: {prompt.method}, {prompt.num_virtual_tokens} virtual tokens"
    if not prompt.neighbours:
        sites = dict.fromkeys(name.split()[0] for name in prompt.norms)
        return [(f"{title}, {site}", _of_layers(prompt, site)) for site in sites]
    shares = {} if prompt.attention is None else prompt.attention.shares
    of_attention = [(f"{prompt.name}: attention of the text, {site}", _of_shares(own)) for site, own in shares.items()]
    return [(title, _of_tokens(prompt)), *of_attention]


def _of_shares(shares: Float[Tensor, " layers"]) -> Rows:
    """Return a row per layer: how much of the attention goes to the prompt."""
    return ["layer", "to the prompt"], [[str(layer), f"{share:.1%}"] for layer, share in enumerate(shares.tolist())]


def _of_tokens(prompt: PromptInspection) -> Rows:
    norms = prompt.norms["embeddings"]
    head = ["token", "nearest words (cosine, distance)", "norm", "words below", "most like token"]
    mass = {} if prompt.attention is None else prompt.attention.tokens
    head += [f"attention, {site}" for site in mass]
    lines = []
    for token, near in enumerate(prompt.neighbours):
        line = [
            str(token),
            _in_words(near),
            f"{norms.tokens[0, token]:.2f}",
            f"{norms.percentiles[0, token]:.0f}%",
            _most_like(prompt, token),
        ]
        lines.append([*line, *(f"{of_site[:, token].mean():.1%}" for of_site in mass.values())])
    return head, lines


def _in_words(near: Sequence[Neighbour]) -> str:
    return ", ".join(f"{word.shown} ({word.cosine:.2f}, {word.distance:.2f})" for word in near)


def _most_like(prompt: PromptInspection, token: int) -> str:
    """Return which other virtual token is most like one, and their cosine."""
    others = prompt.similarity[token].clone()
    others[token] = -2
    return "-" if len(others) == 1 else f"{int(others.argmax())} ({float(others.max()):.2f})"


def _of_layers(prompt: PromptInspection, site: str) -> Rows:
    """Return a row per layer: means over the tokens, and the median word."""
    columns: list[tuple[str, list[str]]] = []
    for kind in ("keys", "values"):
        norms = prompt.norms[f"{site} {kind}"]
        columns.append((f"norm of {kind}", _written(norms.tokens.mean(dim=1), ".2f")))
        columns.append((f"of words' {kind}", _written(norms.words.median(dim=1).values, ".2f")))
        columns.append(("words below", _written(norms.percentiles.mean(dim=1), ".0f", "%")))
    if site in prompt.gates:
        columns.append(("gate", _written(prompt.gates[site], ".3f")))
    if prompt.attention is not None and site in prompt.attention.shares:
        columns.append(("attention", _written(prompt.attention.shares[site], ".1%")))
    head, cells = zip(*columns, strict=True)
    return ["layer", *head], [[str(layer), *line] for layer, line in enumerate(zip(*cells, strict=True))]


def _written(numbers: Float[Tensor, " layers"], form: str, unit: str = "") -> list[str]:
    """Format a column; layers without tokens have no number."""
    return ["-" if math.isnan(number) else f"{number:{form}}{unit}" for number in numbers.tolist()]
