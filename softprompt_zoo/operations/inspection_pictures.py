"""A picture of what `inspect` found."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.errors import check_packages
from softprompt_zoo.operations.inspection_findings import PromptInspection

LABELED = 40
"""Maximum number of tokens whose nearest word is shown next to a map."""


def draw(prompts: Sequence[PromptInspection], panels_in_a_row: int) -> bytes:
    """Draw prompts, one below the other.

    Args:
        prompts: The findings.
        panels_in_a_row: How many of a prompt's panels are side by side.

    Returns:
        A PNG.

    Raises:
        MissingPackageError: If matplotlib is not installed.
    """
    check_packages("pictures need", "matplotlib", remedy='pip install "softprompt-zoo[train]", or print the tables')
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
        _draw_panels(figure, panels, prompt)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # words in scripts that matplotlib's font lacks are drawn as boxes
        # Without matplotlib's version in the file, the same findings result in the same picture.
        figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _title(prompt: PromptInspection, text: str) -> dict[str, Any]:
    return {"label": f"{prompt.name}: {text}", "parse_math": False}


def _draw_norms(axes: Any, prompt: PromptInspection) -> None:
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
    axes.legend(fontsize="small", loc="lower right")  # where it does not hide the top of any bar
    axes.grid(alpha=0.3)


def _draw_similarity(figure: Any, axes: Any, prompt: PromptInspection) -> None:
    image = axes.imshow(prompt.similarity.tolist(), vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(image, ax=axes, label="cosine")
    axes.set_title(**_title(prompt, "similarity of tokens"))
    axes.set(xlabel="virtual token", ylabel="virtual token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if prompt.neighbours and prompt.num_virtual_tokens <= LABELED:
        _label_with_words(axes, prompt)


def _label_with_words(axes: Any, prompt: PromptInspection) -> None:
    labels = [f"{near[0].shown} {token}" for token, near in enumerate(prompt.neighbours)]
    axes.set_yticks(range(len(labels)), labels, fontsize="small" if len(labels) <= 20 else "xx-small")
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set(ylabel="nearest word, virtual token")


def _draw_panels(figure: Any, panels: Any, prompt: PromptInspection) -> None:
    """Draw one prompt, in two or four panels."""
    _draw_norms(panels[0], prompt)
    _draw_similarity(figure, panels[1], prompt)
    if len(panels) > 2:
        _draw_shares(panels[2], prompt)
        _draw_tokens(figure, panels[3], prompt)


def _curves(prompt: PromptInspection) -> dict[str, Tensor]:
    """Return the curves over layers: shares of attention, and gates."""
    shares = {} if prompt.attention is None else dict(prompt.attention.shares)
    return shares | {f"{site}, gate": gates for site, gates in prompt.gates.items()}


def _draw_shares(axes: Any, prompt: PromptInspection) -> None:
    """Draw the attention to the prompt, or the gates of a gated one."""
    curves = _curves(prompt)
    if not curves:
        axes.set_axis_off()
        return
    for label, layers in curves.items():
        axes.plot(layers.tolist(), marker="o", label=label)
    title, unit = ("gates", "mean size of the gate") if prompt.gates else ("part of the text's attention", "part")
    axes.set_title(**_title(prompt, title))
    axes.set(xlabel="layer", ylabel=unit, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _draw_tokens(figure: Any, axes: Any, prompt: PromptInspection) -> None:
    """Draw the attention to each token, at the site with the most attention."""
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
