"""Facts about a frozen model for the package itself, not for plugins."""

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
    """Live modules of the model, and checks that only the host makes."""

    task_head: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """The modules of the model's task head, by their names in the model; empty if there is none."""
    heads: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    """The modules after the last layer, by their names in the model: its task head or language modeling head."""
    own_parameter: Callable[[str], Shaped[Tensor, "..."] | None] = _none
    """Maps a qualified name to that parameter of the frozen model; `None` if there is none."""
    find_part: Callable[[Mapping[str, Tensor]], str | None] = _no_part
    """Maps named tensors to the name of one that is a part of the model; `None` if none is."""
    refuse: Callable[[Placement], None] = _accept
    """Raises `UnsupportedError` for a placement that the model cannot take."""
    refuse_branches: Callable[[], None] = _accept_branches
    """Raises `UnsupportedError` if nothing can be added to the output of the model's attention."""
    input_problem: str | None = None
    """Why the model has no place for embeddings other than its words'; `None` if it has one."""
    reads_tokens: bool = True
    """Whether the text that prompts go in front of consists of tokens rather than audio."""
    scales_ids: bool = False
    """Whether the model scales the rows of its embedding table only when given ids, which PEFT does not handle."""
