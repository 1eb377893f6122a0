"""Blending prompts: several become one, a plain prompt that can be used and trained on."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt_zoo.config.checks import check_choice
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.operations.given import Given, GivenPrompt, check_alike, read_given
from softprompt_zoo.prompt.plain import plain_prompt
from softprompt_zoo.prompt.prompt import Prompt

BLENDS = ("mean", "sum", "slerp", "task_vectors", "concatenate")
PARALLEL = 1e-6
"""Sine of the angle below which two directions count as one, or as opposite."""


@torch.no_grad()
def blend(
    prompts: Sequence[GivenPrompt],
    weights: Sequence[float] | Tensor | None = None,
    how: str = "mean",
    *,
    initial: GivenPrompt | None = None,
    drop_heads: bool = False,
    model: PreTrainedModel | None = None,
) -> Prompt:
    """Blend prompts into one plain prompt. The originals are not changed, and no gradient flows to them.

    Args:
        prompts: Prompts of one model, `model.prompts[name]`, or folders of saved ones; all at the input embeddings, or
            all at the keys and values of the same sites.
        weights: A real number for each prompt, in any sequence, tensor or array; what it means depends on `how`.
        how: `"mean"`: the weighted mean, weights of at least 0 (by default equal). `"sum"`: the weighted sum, any
            weights (by default 1). `"slerp"`: two prompts; each vector (an embedding, a head's key or value) turns on
            the sphere from the first's direction to the second's and its length changes evenly; weights as for the
            mean. `"task_vectors"`: `initial` plus the weighted sum of what each prompt differs from it, any weights (by
            default 1). `"concatenate"`: the tokens one behind the other; no weights.
        initial: The prompt the others were trained from, for `"task_vectors"` alone.
        drop_heads: Drop trained task heads, which cannot be blended: rows then use the model's own.
        model: The model the prompts are for; needed where all are folders.

    Returns:
        A trainable prompt in no model: put it on one with `model.prompts.add(name, prompt)`, or start another from
        it with `init=prompt`. Computed in float64, in the dtype and on the device of the first prompt.

    Raises:
        TypeError: If a prompt or a weight is of a wrong type.
        ValueError: If there are too few prompts, weights that do not fit `how`, or `initial` without need.
        BackboneMismatchError: If a prompt was made for a model of other sizes.
        CheckpointError: If a folder holds no prompt.
        UnsupportedError: If the prompts do not fit each other: other places, lengths, dropout or visibility, several
            tasks, trained heads, a mix of gated and others.

    Source:
        Task vectors: Ilharco et al., "Editing Models with Task Arithmetic", 2023, section 2. Slerp: Shoemake,
        "Animating Rotation with Quaternion Curves", 1985, here of directions alone.
    """
    check_choice("how", how, BLENDS)
    if isinstance(prompts, str | Prompt) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {type(prompts).__name__}; expected a list of prompts or folders")
    if len(prompts) < (1 if how == "task_vectors" else 2) or (how == "slerp" and len(prompts) != 2):
        expected = {"slerp": "two", "task_vectors": "at least one"}.get(how, "at least two")
        raise ValueError(f"how={how!r} was given {len(prompts)} prompts; expected {expected}")
    if (initial is not None) != (how == "task_vectors"):
        told = "is missing" if initial is None else f"was given with how={how!r}"
        raise ValueError(f"initial {told}; give the prompt the others were trained from, with how='task_vectors' alone")
    factors = _check_weights(weights, len(prompts), how)
    named: list[tuple[str, Any]] = [(f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts)]
    given, backbone, host = read_given([*named, *([] if initial is None else [("initial", initial)])], model)
    _check_fit(given, how, drop_heads)
    first, *others = [one.tokens for one in given]
    blended = first.map(_wide(_BLENDS[how], factors), *others, gates=_wide(_OF_GATES[how], factors))
    prompt = plain_prompt(blended, backbone, given[0].placement, given[0].prompt)
    if host is not None:
        prompt.belong_to(host)
    return prompt


def _check_weights(weights: Any, count: int, how: str) -> list[float]:
    if how == "concatenate":
        if weights is not None:
            raise ValueError(f"weights is {weights!r}; how='concatenate' takes none")
        return []
    if weights is None:
        return [1.0] * count if how in ("sum", "task_vectors") else [1 / count] * count
    if hasattr(weights, "tolist"):  # a tensor or an array
        weights = weights.tolist()
    if not isinstance(weights, Sequence) or isinstance(weights, str) or len(weights) != count:
        raise ValueError(f"weights is {weights!r}; expected {count} numbers, one for each prompt")
    weights = [weight.item() if isinstance(weight, Tensor) and weight.ndim == 0 else weight for weight in weights]
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
            raise TypeError(f"weights has {weight!r} ({type(weight).__name__}); expected real numbers")
        if not math.isfinite(weight):
            raise ValueError(f"weights has {weight}; expected finite numbers")
    factors = [float(weight) for weight in weights]
    if how in ("sum", "task_vectors"):
        return factors
    if min(factors) < 0 or not sum(factors) > 0:
        raise ValueError(
            f"weights is {factors}; how={how!r} takes numbers of at least 0 that are not all 0 (how='sum' and "
            "how='task_vectors' take any)"
        )
    return [factor / sum(factors) for factor in factors]


def _check_fit(given: Sequence[Given], how: str, drop_heads: bool) -> None:
    check_alike(given)
    first = given[0]
    for one in given:
        one.prompt.refuse_weight(one.what, "a blend")
        if one.prompt.head is not None and not drop_heads:
            raise UnsupportedError(
                f"{one.what} has a trained task head, and heads cannot be blended; blend the tokens alone with "
                "drop_heads=True, and train a head for them"
            )
        for name in ("dropout", "always_visible", "is_pooled"):
            own, firsts = getattr(one.placement, name), getattr(first.placement, name)
            if own != firsts:
                raise UnsupportedError(
                    f"{one.what} has {name}={own}, {first.what} has {firsts}; give prompts with the same {name}"
                )
        lengths = [prompt.prompt.num_virtual_tokens for prompt in (one, first)]
        if how != "concatenate" and lengths[0] != lengths[1]:
            raise UnsupportedError(
                f"{one.what} has {lengths[0]} virtual tokens, {first.what} has {lengths[1]}; how={how!r} needs as many "
                "in each: cut the longer one with zoo.truncate, or use how='concatenate'"
            )
    if first.tokens.gates:
        _check_gated(given, how)


def _check_gated(given: Sequence[Given], how: str) -> None:
    if how == "concatenate":
        raise UnsupportedError(
            "gated prompts have a softmax each, which one prompt cannot have; activate both instead of concatenating"
        )
    methods = dict.fromkeys(one.prompt.method for one in given)
    if len(methods) > 1:
        raise UnsupportedError(f"the gated prompts are of the methods {', '.join(methods)}; give prompts of one method")
    gates = [[gate.shape for own in one.tokens.gates.values() for gate in own if gate is not None] for one in given]
    if any(shapes != gates[0] for shapes in gates):
        raise UnsupportedError(
            "the prompts have gates of other shapes, per head and per layer; give prompts of one shape"
        )


def _sum(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * vector for weight, vector in zip(weights, vectors, strict=True)]).sum(dim=0)


def _task_vectors(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    """Add to the last vector what the others differ from it."""
    *others, base = vectors
    return base + _sum(weights, [vector - base for vector in others])


def _slerp(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    """Turn the direction on the sphere, and change the length evenly."""
    share = weights[1]
    norms = [vector.norm(dim=-1, keepdim=True) for vector in vectors]
    a, b = (vector / norm.clamp_min(1e-300) for vector, norm in zip(vectors, norms, strict=True))
    # By the half angle: exact where the directions are nearly the same or opposite, which a cosine is not.
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    has_direction = (norms[0] > 0) & (norms[1] > 0)
    if bool((has_direction & (angle > math.pi - PARALLEL)).any()) and 0 < share < 1:
        raise UnsupportedError(
            "two of the vectors point in opposite directions, between which no turn is the shortest; use how='mean'"
        )
    turned = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    spherical = _sum(weights, norms) * turned
    is_straight = ~has_direction | (angle < PARALLEL) | (angle > math.pi - PARALLEL)
    return torch.where(is_straight, _sum(weights, vectors), spherical)


def _concatenate(weights: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(vectors), dim=-2)


_BLENDS = {"mean": _sum, "sum": _sum, "slerp": _slerp, "task_vectors": _task_vectors, "concatenate": _concatenate}
_OF_GATES = _BLENDS | {"slerp": _sum}
"""Gates are numbers, which have no direction."""


def _wide(blend_vectors: Callable[..., Tensor], weights: Sequence[float]) -> Callable[..., Tensor]:
    """Have tensors blended in float64, on the device of the first."""

    def apply(first: Tensor, *others: Tensor) -> Tensor:
        wide = torch.float64 if first.device.type != "mps" else torch.float32  # which has no float64
        blended = blend_vectors(weights, [tensor.to(first.device, wide) for tensor in (first, *others)])
        return blended.to(torch.promote_types(first.dtype, torch.float32))

    return apply
