"""The ways to blend prompts, and the input of each."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float

PARALLEL = 1e-6
"""Sine of the angle below which two directions count as the same or as opposite."""

Function = Callable[[Sequence[float], Sequence[Float[Tensor, "..."]]], Float[Tensor, "..."]]
"""Computes a blend from the weights and the tensors at the same place in each prompt."""


@dataclasses.dataclass(frozen=True)
class Blend:
    """A way to blend prompts."""

    of_vectors: Function
    """Blends embeddings, keys and values `(…, tokens, width)`."""
    of_gates: Function | None
    """Blends gates `(heads,)`, which have no direction; `None` if they cannot be blended."""
    counts: range = range(2, 1_000_000)
    """How many prompts it takes."""
    expects: str = "at least two"
    """The same in words."""
    has_weights: bool = True
    """Whether prompts have weights."""
    has_shares: bool = False
    """Whether weights are shares of one, rather than any numbers."""
    has_initial: bool = False
    """Whether it takes the prompt that the others were trained from, as the last one."""
    keeps_length: bool = True
    """Whether it needs the same number of tokens in each prompt."""


def _sum(weights: Sequence[float], vectors: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    return torch.stack([weight * vector for weight, vector in zip(weights, vectors, strict=True)]).sum(dim=0)


def _task_vectors(weights: Sequence[float], vectors: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    """Add the differences of the other vectors from the last one to it."""
    *others, base = vectors
    return base + _sum(weights, [vector - base for vector in others])


def _slerp(weights: Sequence[float], vectors: Sequence[Float[Tensor, "... width"]]) -> Float[Tensor, "... width"]:
    """Turn the direction on the sphere and change the length linearly."""
    share = weights[1]
    norms = [vector.norm(dim=-1, keepdim=True) for vector in vectors]
    a, b = (vector / norm.clamp_min(1e-300) for vector, norm in zip(vectors, norms, strict=True))
    # By the half angle: exact even if the directions are nearly the same or opposite, unlike a cosine.
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    has_direction = (norms[0] > 0) & (norms[1] > 0)
    if bool((has_direction & (angle > math.pi - PARALLEL)).any()) and 0 < share < 1:
        raise UnsupportedError(
            f"two of the vectors point in opposite directions ({math.degrees(float(angle.max())):.4g} degrees apart), "
            "so there is no shortest turn between them; use how='mean'"
        )
    turned = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    spherical = _sum(weights, norms) * turned
    is_straight = ~has_direction | (angle < PARALLEL) | (angle > math.pi - PARALLEL)
    return torch.where(is_straight, _sum(weights, vectors), spherical)


def _concatenate(
    weights: Sequence[float], vectors: Sequence[Float[Tensor, "... _ width"]]
) -> Float[Tensor, "... tokens width"]:
    return torch.cat(list(vectors), dim=-2)


BLENDS = {
    "mean": Blend(_sum, _sum, has_shares=True),
    "sum": Blend(_sum, _sum),
    "slerp": Blend(_slerp, _sum, range(2, 3), "two", has_shares=True),
    "task_vectors": Blend(_task_vectors, _task_vectors, range(1, 1_000_000), "at least one", has_initial=True),
    "concatenate": Blend(_concatenate, None, has_weights=False, keeps_length=False),
}
"""By the name for users."""
