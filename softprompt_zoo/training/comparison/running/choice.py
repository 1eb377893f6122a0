"""How the user wants trials to be run, checked before anything heavy is imported."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.errors import check_packages

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Runner

HERE = "here"
PLACES = (HERE, "ray")
"""Where trials can be run."""


def check_running(on: str, together: int, search: int | None, workers: int | None) -> None:
    """Reject a value that is not allowed, whatever the others are; the arguments are the fields of `Running`.

    Raises:
        ValueError: If a value is not allowed; the message says what is.
    """
    check_choice("on", on, PLACES)
    for name, value in (("together", together), ("search", search), ("workers", workers)):
        if value is not None:
            check_positive_integer(name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A way to run trials."""

    together: int = 1
    """Number of trials of a method that share their batches."""
    on: str = HERE
    """Where they are run: in this process, or on a cluster."""
    workers: int | None = None
    """Maximum number of workers of the cluster; `None` for all."""

    search: int | None = None
    """Number of trials per candidate for which a search chooses rate and options; `None` for no search."""

    def __post_init__(self) -> None:
        check_running(self.on, self.together, self.search, self.workers)
        if self.search is not None:
            check_packages("--search needs", "optuna", remedy='pip install "softprompt-zoo[search]"')
        if self.on == HERE:
            self._check_here()
        elif self.together > 1:
            raise ValueError(
                f"--together {self.together} shares batches in one process; leave it out with --on {self.on}"
            )
        else:
            check_packages("--on ray needs", "ray", "pyarrow", remedy='pip install "softprompt-zoo[ray]"')

    def _check_here(self) -> None:
        if self.workers is not None:
            raise ValueError(f"--workers {self.workers} applies to a cluster; give --on ray, or leave --workers out")

    @property
    def is_plain(self) -> bool:
        """Whether trials are run in this process, one after the other."""
        return self.on == HERE and self.together == 1

    def at_once(self, studies: int) -> int:
        """Return how many trials of each study keep the runner busy.

        Args:
            studies: Number of studies.
        """
        return self.together if self.on == HERE else -(-(self.workers or 1) // studies)

    def runner(self, tell: "Callable[[str], object]") -> "Runner":
        """Return the runner.

        Args:
            tell: Called with a message if trials are run differently than requested.
        """
        if self.on != HERE:
            from softprompt_zoo.training.comparison.running.on_ray import OnRay

            return OnRay(self.workers, tell)
        if self.together > 1:
            from softprompt_zoo.training.comparison.running.together import Together

            return Together(self.together, tell)
        from softprompt_zoo.training.comparison.running.one_by_one import one_by_one

        return one_by_one


ONE_BY_ONE = Running()
