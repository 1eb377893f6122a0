"""The learning-rate test on the command line: what it prints and plots."""

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
"""Length of the longest bar, in characters."""
EVERY = 2
"""Steps between two lines of the table."""


def try_rates(settings: Settings, console: Console, png: Path | None = None) -> None:
    """Try learning rates for a run; only the plot is written.

    Args:
        settings: The run.
        console: Where the curve and the suggestion are printed.
        png: File of the plot; `None` for no plot.

    Raises:
        ZooError: If some input cannot be used.
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
    console.print("\n".join([*describe(curve), f"the run is set to train at {run.settings.learning_rate:g}"]))


def describe(curve: RateCurve) -> list[str]:
    """Describe what a test suggests, how it was chosen, and how far to trust it.

    Args:
        curve: The result of the test.

    Returns:
        Lines of text.
    """
    if not curve.rates:
        return ["no suggestion: the loss diverged in the first step, at the lowest rate"]
    noise = f"noise is {curve.noise:.3f} nats a step"
    if curve.suggestion is None:
        most = -curve.smoothed[curve.lowest]
        return [
            f"no suggestion: no rate lowered the loss by more than {NOISE:g} times the noise ({noise}, the largest "
            f"fall is {most:.3f}); raise --batch-size, or keep the recipe's rate"
        ]
    end = "" if curve.rates[-1] >= HIGHEST else f"; above {curve.rates[-1]:.1g} it diverges"
    return [
        f"suggested: --learning-rate {curve.suggestion:g}, where the smoothed loss falls fastest",
        f"it is lowest at {curve.rates[curve.lowest]:.1g}{end}; {noise}",
        "one step per rate shows the start of a training, not its end: a third of this rate and three times it are "
        "just as plausible",
    ]


def _table(curve: RateCurve) -> Table:
    table = Table("rate", "change in loss", "smoothed", "")
    deepest = max(map(abs, curve.smoothed)) or 1.0
    points = list(zip(curve.rates, curve.losses, curve.smoothed, strict=True))
    for rate, loss, smoothed in points[::EVERY]:
        bar = "█" * round(BAR * abs(smoothed) / deepest)
        table.add_row(
            f"{rate:.1e}", f"{loss:+.3f}", f"{smoothed:+.3f}", f"[green]{bar}" if smoothed < 0 else f"[red]{bar}"
        )
    return table
