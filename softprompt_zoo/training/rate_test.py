"""The test of rates as a command: what it prints and draws."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from softprompt_zoo.training import processes
from softprompt_zoo.training.picture import draw_rates
from softprompt_zoo.training.prepared import prepare
from softprompt_zoo.training.rates import HIGHEST, LOWEST, NOISE, RateCurve, find_rate
from softprompt_zoo.training.report import short_path
from softprompt_zoo.training.run import check_installed
from softprompt_zoo.training.settings import Settings

BAR = 30
"""Characters of the longest bar."""
EVERY = 2
"""Steps between two lines of the table."""


def try_rates(settings: Settings, console: Console, png: Path | None = None) -> None:
    """Try learning rates for a run; nothing is written but the picture.

    Args:
        settings: The run.
        console: Where the curve and the suggestion go.
        png: The picture; `None` for none.

    Raises:
        ZooError: If something the user gave cannot be used.
    """
    check_installed()
    console = processes.console_of_main(console)
    run = prepare(settings.absolute(), console)
    model = run.attach()
    rows = run.settings.batch_size
    console.print(f"trying rates from {LOWEST:g} to {HIGHEST:g}, one step of {rows} rows each", highlight=False)
    curve = find_rate(model, run.method, run.settings, run.rows, run.evaluator)
    if curve.rates:
        console.print(_table(curve))
        if png is not None:
            draw_rates(png, f"rates of {run.method.name} on {Path(run.settings.model).name}", curve)
            console.print(f"picture: {short_path(png)}", markup=False, highlight=False)
    console.print("\n".join([*describe(curve), f"the run as it is would train at {run.settings.learning_rate:g}"]))


def describe(curve: RateCurve) -> list[str]:
    """Say what a test of rates suggests, how that was chosen, and how far to trust it.

    Args:
        curve: The test.

    Returns:
        Lines of text.
    """
    if not curve.rates:
        return ["no suggestion: the loss was hopeless after the first step, at the lowest rate"]
    noise = f"noise is {curve.noise:.3f} nats a step"
    if curve.suggestion is None:
        most = -curve.smoothed[curve.lowest]
        return [
            f"no suggestion: no rate lowered the loss by more than {NOISE:g} times the noise ({noise}, the largest "
            f"fall is {most:.3f}); raise --batch-size, or keep to the recipe's rate"
        ]
    end = "" if curve.rates[-1] >= HIGHEST else f"; behind {curve.rates[-1]:.1g} it is hopeless"
    return [
        f"suggested: --learning-rate {curve.suggestion:g}, where the smoothed loss falls fastest",
        f"it is lowest at {curve.rates[curve.lowest]:.1g}{end}; {noise}",
        "one step a rate says what a rate does at the start, not in the end: take a third of it and three times it as "
        "just as likely",
    ]


def _table(curve: RateCurve) -> Table:
    table = Table("rate", "loss against the start", "smoothed", "")
    deepest = max(map(abs, curve.smoothed)) or 1.0
    points = list(zip(curve.rates, curve.losses, curve.smoothed, strict=True))
    for rate, loss, smoothed in points[::EVERY]:
        bar = "█" * round(BAR * abs(smoothed) / deepest)
        table.add_row(
            f"{rate:.1e}", f"{loss:+.3f}", f"{smoothed:+.3f}", f"[green]{bar}" if smoothed < 0 else f"[red]{bar}"
        )
    return table
