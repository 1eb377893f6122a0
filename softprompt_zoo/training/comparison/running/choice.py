"""Which way to run trials the user chose, checked before anything heavy is imported."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.errors import check_packages

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Runner

HERE = "here"
PLACES = (HERE, "ray")
"""Where trials are run."""


def check_running(on: str, together: int, search: int | None, workers: int | None) -> None:
    """Refuse a value that is not allowed, whatever the others are; arguments as the fields of `Running`.

    Raises:
        ValueError: If it is not; says what is.
    """
    check_choice("on", on, PLACES)
    for name, value in (("together", together), ("search", search), ("workers", workers)):
        if value is not None:
            check_positive_integer(name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A way to run trials."""

    together: int = 1
    """Trials of a method that share their batches."""
    on: str = HERE
    """Where: in this process, or on a cluster."""
    workers: int | None = None
    """Workers of the cluster at most; `None` for all there are."""

    search: int | None = None
    """Trials of each candidate whose rate and options a search chooses; `None` to run all that were asked for."""

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
            raise ValueError(f"--workers {self.workers} are those of a cluster; give --on ray, or leave them out")

    @property
    def is_plain(self) -> bool:
        """Whether trials are run here, one after the other."""
        return self.on == HERE and self.together == 1

    def at_once(self, studies: int) -> int:
        """Return how many trials of each study of a search keep it busy.

        Args:
            studies: How many there are.
        """
        return self.together if self.on == HERE else -(-(self.workers or 1) // studies)

    def runner(self, tell: "Callable[[str], object]") -> "Runner":
        """Make what runs them.

        Args:
            tell: Told what is run in another way than was asked for.
        """
        if self.on != HERE:
            from softprompt_zoo.training.comparison.running.on_ray import OnRay

            return OnRay(self.workers, tell)
        if self.together > 1:
            from softprompt_zoo.training.comparison.running.together import Together

            return Together(self.together, tell)
        from softprompt_zoo.training.comparison.running.runner import one_by_one

        return one_by_one


ONE_BY_ONE = Running()
