"""The settings of `compare`, from flags or a configuration file with the same names, and written back to one."""

import dataclasses
from collections.abc import Callable
from typing import Any

from softprompt_zoo.config.config_file import config_text
from softprompt_zoo.training.comparison.choices import BASELINES, QUICK, SHOTS, Choices, Rate, read_list, read_rate
from softprompt_zoo.training.comparison.running.choice import HERE, Running, check_running
from softprompt_zoo.training.settings import DEMO_HANDWRITTEN, DataSettings, Settings

HEAD = "This comparison: softprompt-zoo compare --config FILE continues it; with --output NEW_FOLDER it is repeated."
NONE = "none"
"""The value that means no baselines."""
SHARED = (*(field.name for field in dataclasses.fields(DataSettings)), "output")
"""The fields shared with a training run."""
COUNTS = ("steps", "validation_rows", "batch_size", "rows", "parameters", "shots")
"""The fields that are numbers in `Choices`."""
LISTS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "methods": ("methods", str, "names"),
    "baselines": ("baselines", str, "names"),
    "seeds": ("seeds", int, "integers"),
    "rates": ("learning_rates", read_rate, "numbers, or multiples such as 2x"),
    "lengths": ("lengths", int, "integers"),
    "starts": ("starts", str, "names"),
}
"""The lists in `Choices`: the field here, the function that reads a part, and what the parts are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig(DataSettings):
    """A field for each flag of `compare`; lists are lists, or text with commas as in flags."""

    output: str = "comparison"
    methods: tuple[str, ...] | str | None = None
    baselines: tuple[str, ...] | str = BASELINES
    seeds: tuple[int, ...] | int | str | None = None
    learning_rates: tuple[float | str, ...] | float | str = "1x"
    lengths: tuple[int, ...] | int | str | None = None
    starts: tuple[str, ...] | str | None = None
    steps: int | None = None
    batch_size: int = 8
    rows: int | None = None
    validation_rows: int | None = None
    parameters: int | None = None
    shots: int = SHOTS
    quick: bool = False
    together: int = 1
    search: int | None = None
    on: str = HERE
    workers: int | None = None

    def settings(self) -> Settings:
        """Return the settings shared with a training run.

        Raises:
            ValueError: If a value is not allowed.
        """
        own = {name: vars(self)[name] for name in SHARED}
        if own["handwritten"] is None and self.data is None:
            own["handwritten"] = DEMO_HANDWRITTEN
        return Settings(**own)

    def choices(self) -> Choices:
        """Return what is compared, and with what budget.

        Raises:
            ValueError: If a value is not allowed.
        """
        counts = {name: vars(self)[name] for name in COUNTS}
        lists = {name: self._list(*how) for name, how in LISTS.items()}
        if self.baselines == NONE:
            lists["baselines"] = ()
        given = {name: value for name, value in {**counts, **lists}.items() if value is not None}
        return dataclasses.replace(QUICK if self.quick else Choices(), **given)

    def running(self) -> Running:
        """Return how trials are run.

        Raises:
            ValueError: If a value is not allowed, or two exclude each other.
        """
        return Running(together=self.together, search=self.search, on=self.on, workers=self.workers)

    def _list(self, name: str, read: Callable[[str], Any], what: str) -> tuple[Any, ...] | None:
        value = vars(self)[name]
        if value is None:
            return None
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return read_list(f"--{name.replace('_', '-')}", text, read, what)


def try_field(**field: Any) -> None:
    """Reject a value that is not allowed, whatever the other fields are.

    Raises:
        ValueError: If it is not allowed; the message says what is.
    """
    config = ComparisonConfig(**field)
    config.settings()
    config.choices()
    check_running(config.on, config.together, config.search, config.workers)


def written_config(settings: Settings, choices: Choices, running: Running) -> str:
    """Write a comparison as a configuration file.

    Args:
        settings: The settings shared with a training run.
        choices: The candidates and their budget.
        running: How trials are run.
    """
    values = {
        **{name: vars(settings)[name] for name in SHARED},
        **{name: vars(choices)[name] for name in COUNTS},
        "methods": choices.methods,
        "baselines": choices.baselines or NONE,
        "seeds": choices.seeds,
        "learning_rates": [_written_rate(rate) for rate in choices.rates],
        "lengths": choices.lengths or None,
        "starts": choices.starts or None,
        **dataclasses.asdict(running),
    }
    return config_text({name: values[name] for name in _order() if name in values}, HEAD)


def _order() -> list[str]:
    return [field.name for field in dataclasses.fields(ComparisonConfig)]


def _written_rate(rate: Rate) -> float | str:
    return str(rate.value).removesuffix(".0") + "x" if rate.is_multiple else rate.value
