"""Which way to run trials the user chose, checked before anything heavy is imported."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from softprompt_zoo.config.checks import check_positive_integer

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Runner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A way to run trials."""

    together: int = 1
    """Trials of a method that share their batches."""

    def __post_init__(self) -> None:
        check_positive_integer("together", self.together)

    def runner(self, tell: "Callable[[str], object]") -> "Runner":
        """Make what runs them.

        Args:
            tell: Told what is run in another way than was asked for.
        """
        if self.together > 1:
            from softprompt_zoo.training.comparison.running.together import Together

            return Together(self.together, tell)
        from softprompt_zoo.training.comparison.running.runner import one_by_one

        return one_by_one


ONE_BY_ONE = Running()
