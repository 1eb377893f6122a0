"""What `inspect` found, for people: tables in the terminal, a picture, a page."""

import base64
import html
import importlib.util
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.formats.files import write_atomically

if TYPE_CHECKING:
    from softprompt_zoo.inspection import Neighbour, PromptInspection

WIDTH = 120
"""Columns of the text that `print` shows."""
LABELLED = 40
"""Tokens at most whose nearest word stands beside a map."""
Rows = tuple[list[str], list[list[str]]]
"""Head and lines of a table."""


def tables(prompt: "PromptInspection") -> list[tuple[str, Rows]]:
    """Put what was found of one prompt into tables.

    Args:
        prompt: What was found.

    Returns:
        Title, and the table's head and lines of text.
    """
    title = f"{prompt.name}: {prompt.method}, {prompt.num_virtual_tokens} virtual tokens"
    found = [(title, _of_tokens(prompt))] if prompt.neighbours else []
    sites = dict.fromkeys(name.split()[0] for name in prompt.norms if name != "embeddings")
    found += [(f"{title}, {site}", _of_layers(prompt, site)) for site in sites]
    if prompt.neighbours and prompt.attention is not None:
        for site, shares in prompt.attention.shares.items():
            lines = [[str(layer), f"{share:.1%}"] for layer, share in enumerate(shares.tolist())]
            found.append((f"{prompt.name}: attention of the text, {site}", (["layer", "to the prompt"], lines)))
    return found


def to_rich(prompts: Sequence["PromptInspection"]) -> Any:
    """Return the tables for rich's console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = []
    for prompt in prompts:
        for title, (head, lines) in tables(prompt):
            table = Table(title=Text(title), title_justify="left")
            for cell in head:
                table.add_column(Text(cell))
            for line in lines:
                table.add_row(*map(Text, line))
            shown.append(table)
    return Group(*shown)


def to_text(prompts: Sequence["PromptInspection"]) -> str:
    """Return the tables as plain text."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None).print(to_rich(prompts))
    return file.getvalue().rstrip()


def to_png(prompts: Sequence["PromptInspection"], path: str | os.PathLike[str]) -> None:
    """Draw all prompts, one below the other, and write the picture."""
    write_atomically(Path(path), _draw(prompts, panels_in_a_row=4))


def to_html(prompts: Sequence["PromptInspection"], path: str | os.PathLike[str]) -> None:
    """Write a page with tables and pictures in it."""
    parts = []
    for prompt in prompts:
        parts.append(f"<h2>{html.escape(prompt.name)}</h2>")
        picture = base64.b64encode(_draw([prompt], panels_in_a_row=2)).decode()
        alt = f"norms, similarities and attention of the prompt {prompt.name}"
        parts.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{picture}">')
        for title, (head, lines) in tables(prompt):
            columns = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
            rows = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in lines)
            parts.append(f"<h3>{html.escape(title)}</h3><table><tr>{columns}</tr>{rows}</table>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Inside the prompts</title><style>'
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222}"
        "img{max-width:100%}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;"
        "border-bottom:1px solid #ccc;white-space:pre-wrap}th{background:#f2f2f2}</style></head><body>"
        f"<h1>Inside the prompts</h1>{''.join(parts)}</body></html>\n"
    )
    write_atomically(Path(path), page.encode())


def _of_tokens(prompt: "PromptInspection") -> Rows:
    norms = prompt.norms["embeddings"]
    head = ["token", "nearest words (cosine, distance)", "norm", "words below", "most like token"]
    mass = {} if prompt.attention is None else prompt.attention.tokens
    head += [f"attention, {site}" for site in mass]
    lines = []
    for token, near in enumerate(prompt.neighbours):
        words = ", ".join(f"{_shown(word)} ({word.cosine:.2f}, {word.distance:.2f})" for word in near)
        others = prompt.similarity[token].clone()
        others[token] = -2
        alike = "-" if len(others) == 1 else f"{int(others.argmax())} ({float(others.max()):.2f})"
        line = [
            str(token),
            words,
            f"{norms.tokens[0, token]:.2f}",
            f"{norms.percentiles[0, token]:.0f}%",
            alike,
        ]
        lines.append([*line, *(f"{of_site[:, token].mean():.1%}" for of_site in mass.values())])
    return head, lines


def _of_layers(prompt: "PromptInspection", site: str) -> Rows:
    """A line per layer: means over the tokens, and the median word."""
    head, columns = ["layer"], []
    for kind in ("keys", "values"):
        norms = prompt.norms[f"{site} {kind}"]
        head += [f"norm of {kind}", f"of words' {kind}", "words below"]
        columns.append([f"{norm:.2f}" for norm in norms.tokens.mean(dim=1).tolist()])
        columns.append([f"{norm:.2f}" for norm in norms.words.median(dim=1).values.tolist()])
        columns.append([f"{percent:.0f}%" for percent in norms.percentiles.mean(dim=1).tolist()])
    if site in prompt.gates:
        head.append("gate")
        columns.append([f"{gate:.3f}" for gate in prompt.gates[site].tolist()])
    if prompt.attention is not None and site in prompt.attention.shares:
        head.append("attention")
        columns.append([f"{share:.1%}" for share in prompt.attention.shares[site].tolist()])
    lines = [[str(layer), *cells] for layer, cells in enumerate(zip(*columns, strict=True))]
    return head, [[cell.replace("nan%", "-").replace("nan", "-") for cell in line] for line in lines]


def _shown(word: "Neighbour") -> str:
    """Show spaces and ends of line; a word without text is its id."""
    return word.word if word.word == f"#{word.id}" else repr(word.word)


def _draw(prompts: Sequence["PromptInspection"], panels_in_a_row: int) -> bytes:
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            'pictures need matplotlib; run: pip install "softprompt-zoo[train]", or print the tables'
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_more = any(prompt.attention is not None or prompt.gates for prompt in prompts)
    count = 4 if has_more else 2
    columns = min(count, panels_in_a_row)
    rows = len(prompts) * count // columns
    figure = Figure(figsize=(5.5 * columns, 4.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(len(prompts), count)
    for prompt, panels in zip(prompts, grid, strict=True):
        _draw_norms(panels[0], prompt)
        _draw_similarity(figure, panels[1], prompt)
        if has_more:
            _draw_shares(panels[2], prompt)
            _draw_tokens(figure, panels[3], prompt)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # words of scripts that matplotlib's font lacks are drawn as boxes
        # Without the version of matplotlib in the file, the same findings make the same picture.
        figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _title(prompt: "PromptInspection", text: str) -> dict[str, Any]:
    return {"label": f"{prompt.name}: {text}", "parse_math": False}


def _draw_norms(axes: Any, prompt: "PromptInspection") -> None:
    if "embeddings" in prompt.norms:
        norms = prompt.norms["embeddings"]
        axes.bar(range(prompt.num_virtual_tokens), norms.tokens[0].tolist(), color="tab:blue", label="virtual tokens")
        words = norms.words[0]
        low, middle, high = (float(words[int(part * (len(words) - 1))]) for part in (0.05, 0.5, 0.95))
        axes.axhspan(low, high, color="tab:orange", alpha=0.3, zorder=0, label="9 of 10 words")
        axes.axhline(middle, color="tab:orange", label="median word")
        axes.set(xlabel="virtual token", ylabel="L2 norm")
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        for index, (name, norms) in enumerate(prompt.norms.items()):
            color = f"C{index}"
            axes.plot(norms.tokens.mean(dim=1).tolist(), color=color, marker="o", label=name)
            axes.plot(norms.words.median(dim=1).values.tolist(), color=color, linestyle=":", label=f"{name} of words")
        axes.set(xlabel="layer", ylabel="L2 norm, mean over tokens", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(**_title(prompt, "norms"))
    axes.legend(fontsize="small", loc="lower right")  # where it hides the top of no bar
    axes.grid(alpha=0.3)


def _draw_similarity(figure: Any, axes: Any, prompt: "PromptInspection") -> None:
    image = axes.imshow(prompt.similarity.tolist(), vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set_title(**_title(prompt, "similarity of tokens"))
    axes.set(xlabel="virtual token", ylabel="virtual token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if prompt.neighbours and prompt.num_virtual_tokens <= LABELLED:
        labels = [f"{_shown(near[0])} {token}" for token, near in enumerate(prompt.neighbours)]
        axes.set_yticks(range(len(labels)), labels, fontsize="small" if len(labels) <= 20 else "xx-small")
        for label in axes.get_yticklabels():
            label.set_parse_math(False)
        axes.set(ylabel="nearest word, virtual token")


def _draw_shares(axes: Any, prompt: "PromptInspection") -> None:
    """Draw the attention to the prompt, or the gates of a gated one."""
    shares = {} if prompt.attention is None else prompt.attention.shares
    for site, layers in shares.items():
        axes.plot(layers.tolist(), marker="o", label=site)
    for site, gates in prompt.gates.items():
        axes.plot(gates.tolist(), marker="o", label=f"{site}, gate")
    if not shares and not prompt.gates:
        axes.set_axis_off()
        return
    axes.set_title(**_title(prompt, "gates" if prompt.gates else "part of the text's attention"))
    axes.set(xlabel="layer", ylabel="mean size of the gate" if prompt.gates else "part", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _draw_tokens(figure: Any, axes: Any, prompt: "PromptInspection") -> None:
    """Draw the attention to each token, at the site that gives the most."""
    tokens = {} if prompt.attention is None else prompt.attention.tokens
    if not tokens:
        axes.set_axis_off()
        return
    site = max(tokens, key=lambda name: float(tokens[name].mean()))
    image = axes.imshow(tokens[site].tolist(), aspect="auto", cmap="viridis", vmin=0)
    figure.colorbar(image, ax=axes, label="part of the text's attention")
    axes.set_title(**_title(prompt, f"attention to each token, {site}"))
    axes.set(xlabel="virtual token", ylabel="layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
