"""Plots: the losses of a run, and those of a learning-rate test."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt_zoo.files.writing import write_atomically
from softprompt_zoo.training.rates import NOISE, RateCurve


def draw_losses(path: Path, title: str, history: Sequence[Mapping[str, float]], levels: Mapping[str, float]) -> None:
    """Plot the losses of a run, with the losses it is compared to as horizontal lines.

    Args:
        path: The PNG file, written atomically.
        title: The title of the plot.
        history: Trainer's log: entries with `step`, and `loss` or `eval_loss`.
        levels: The losses to compare with, by name.
    """
    figure, axes = _plot(title)
    _draw_curves(axes, history)
    for (name, loss), color in zip(levels.items(), ("tab:red", "tab:green"), strict=False):
        axes.axhline(loss, label=f"{name}, validation", color=color, linestyle="--")
    axes.set(xlabel="optimizer step", ylabel="loss per target token (nats)")
    axes.set_ylim(bottom=0)
    _write(path, figure)


def draw_rates(path: Path, title: str, curve: RateCurve) -> None:
    """Plot a learning-rate test.

    Args:
        path: The PNG file, written atomically.
        title: The title of the plot.
        curve: The result of the test.
    """
    figure, axes = _plot(title)
    axes.plot(curve.rates, curve.losses, ".", color="tab:blue", alpha=0.45, label="a batch each")
    axes.plot(curve.rates, curve.smoothed, color="tab:blue", linewidth=2, label="smoothed")
    bound = NOISE * curve.noise
    axes.axhspan(-bound, bound, color="tab:gray", alpha=0.15, label=f"{NOISE:g} times the noise")
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color="tab:green", linestyle="--", label=f"suggested: {curve.suggestion:g}")
    axes.set(xscale="log", xlabel="learning rate of a step", ylabel="loss after it, less that of the start (nats)")
    axes.set_ylim(top=2 * max(-min(curve.smoothed), bound))  # a diverged loss would hide the fall
    _write(path, figure)


def _plot(title: str) -> tuple[Any, Any]:
    """Return an empty plot: the figure and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, parse_math=False)  # a model's name may contain dollar signs
    axes.grid(alpha=0.3)
    return figure, axes


def _write(path: Path, figure: Any) -> None:
    figure.legend(loc="outside lower center", ncols=2)  # inside the plot, it could hide a line
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


def _draw_curves(axes: Any, history: Sequence[Mapping[str, float]]) -> None:
    """Plot the losses at the steps at which they were measured."""
    curves: dict[str, dict[str, Any]] = {
        "loss": {"label": "training, one batch per step", "alpha": 0.45, "linewidth": 1},
        "eval_loss": {"label": "validation", "marker": "o", "linewidth": 2},
    }
    for key, style in curves.items():
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), color="tab:blue", **style)
