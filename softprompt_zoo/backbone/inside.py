"""What the package itself needs to know of a frozen model, and no plugin."""

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from softprompt_zoo.shapes import Shaped
from softprompt_zoo.tokens.placement import Placement


def _none(name: str) -> None:
    """Know no parameter of the model."""


def _no_part(tensors: Mapping[str, Tensor]) -> None:
    """Find no part of the model."""


def _accept(placement: Placement) -> None:
    """Refuse nothing."""


def _accept_branches() -> None:
    """Refuse nothing."""


@dataclasses.dataclass(frozen=True)
class Inside:
    """Live modules of the model, and questions that only the host asks."""

    task_head: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """The modules of the model's task head, by their names in it; empty where there is none."""
    heads: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """The modules after the last layer by their names in the model: its task head, or what predicts words."""
    own_parameter: Callable[[str], Shaped[Tensor, "..."] | None] = _none
    """Qualified name of a parameter of the frozen model to the parameter; `None` if there is none."""
    find_part: Callable[[Mapping[str, Tensor]], str | None] = _no_part
    """Named tensors to the name of one that is a part of the model; `None` if none is."""
    refuse: Callable[[Placement], None] = _accept
    """Raises `UnsupportedError` for what cannot be placed in the model."""
    refuse_branches: Callable[[], None] = _accept_branches
    """Raises `UnsupportedError` if nothing can be added to what the model's attention gives."""
    input_problem: str | None = None
    """Why the model has no place for other embeddings than its words'; `None` if it has."""
    reads_tokens: bool = True
    """Whether the text that prompts stand in front of is tokens, and not sound."""
    scales_ids: bool = False
    """Whether the model scales the rows of its embedding table only where it is given ids, which PEFT does not know."""
