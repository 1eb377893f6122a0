"""Blend several prompts into one plain prompt, which can be used and trained further."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt_zoo.config.checks import check_choice
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.operations.blend_weights import read_weights
from softprompt_zoo.operations.blends import BLENDS, Blend, Function
from softprompt_zoo.operations.given import Given, GivenPrompt, check_alike, read_given
from softprompt_zoo.prompt.plain import plain_prompt
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.shapes import Float


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
            mean. `"task_vectors"`: `initial` plus the weighted sum of each prompt's difference from it, any weights (by
            default 1). `"concatenate"`: the tokens one after the other; no weights.
        initial: The prompt that the others were trained from, only for `"task_vectors"`.
        drop_heads: Drop trained task heads, which cannot be blended: rows then use the model's own.
        model: The model that the prompts are for; needed if all are folders.

    Returns:
        A trainable prompt that is not on any model: add it to one with `model.prompts.add(name, prompt)`, or start
        another from it with `init=prompt`. Computed in float64, in the dtype and on the device of the first prompt.

    Raises:
        TypeError: If a prompt or a weight has the wrong type.
        ValueError: If there are too few prompts, weights that do not fit `how`, or an unnecessary `initial`.
        BackboneMismatchError: If a prompt was made for a model of different sizes.
        CheckpointError: If a folder holds no prompt.
        UnsupportedError: If the prompts are incompatible: different places, lengths, dropout or visibility, several
            tasks, trained heads, a mix of gated and others.

    Source:
        Task vectors: Ilharco et al., "Editing Models with Task Arithmetic", 2023, section 2. Slerp: Shoemake,
        "Animating Rotation with Quaternion Curves", 1985, here of directions alone.
    """
    check_choice("how", how, tuple(BLENDS))
    way = BLENDS[how]
    _check_arguments(prompts, initial, how, way)
    factors = read_weights(weights, len(prompts), how, way)
    given, backbone, model_prompts = read_given(_named(prompts, initial), model)
    _check_fit(given, how, drop_heads)
    first, *others = [one.tokens for one in given]
    of_gates = None if way.of_gates is None else _wide(way.of_gates, factors)
    blended = first.map(_wide(way.of_vectors, factors), *others, gates=of_gates)
    prompt = plain_prompt(blended, backbone, given[0].placement, given[0].prompt)
    if model_prompts is not None:
        prompt.set_model_prompts(model_prompts)
    return prompt


def _check_arguments(prompts: Any, initial: Any, how: str, way: Blend) -> None:
    if isinstance(prompts, str | Prompt) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {type(prompts).__name__}; expected a list of prompts or folders")
    if len(prompts) not in way.counts:
        raise ValueError(f"how={how!r} was given {len(prompts)} prompts; expected {way.expects}")
    _check_initial(initial, how, way)


def _named(prompts: Sequence[Any], initial: Any) -> list[tuple[str, Any]]:
    """Return the prompts with their names for messages; the initial one last, if there is one."""
    named = [(f"prompts[{index}]", prompt) for index, prompt in enumerate(prompts)]
    return named if initial is None else [*named, ("initial", initial)]


def _check_initial(initial: Any, how: str, way: Blend) -> None:
    if (initial is not None) != way.has_initial:
        problem = "is missing" if initial is None else f"was given with how={how!r}"
        raise ValueError(
            f"initial {problem}; give the prompt that the others were trained from, only with how='task_vectors'"
        )


def _check_fit(given: Sequence[Given], how: str, drop_heads: bool) -> None:
    check_alike(given)
    for one in given:
        one.prompt.refuse_weight(one.what, "a blend")
        if not drop_heads:
            _check_no_head(one)
        _check_placed_alike(one, given[0])
        if BLENDS[how].keeps_length:
            _check_as_long(one, given[0], how)
    if given[0].tokens.gates:
        _check_gated(given, how)


def _check_no_head(one: Given) -> None:
    if one.prompt.head is not None:
        raise UnsupportedError(
            f"{one.what} has a trained task head, and heads cannot be blended; blend only the tokens with "
            "drop_heads=True, and train a head for them"
        )


def _check_placed_alike(one: Given, first: Given) -> None:
    for name, own in one.placement.options.items():
        firsts = first.placement.options[name]
        if own != firsts:
            raise UnsupportedError(
                f"{one.what} has {name}={own}, but {first.what} has {firsts}; give prompts with the same {name}"
            )


def _check_as_long(one: Given, first: Given, how: str) -> None:
    own, firsts = one.prompt.num_virtual_tokens, first.prompt.num_virtual_tokens
    if own != firsts:
        raise UnsupportedError(
            f"{one.what} has {own} virtual tokens, but {first.what} has {firsts}; how={how!r} needs the same number: "
            "cut the longer one with zoo.truncate, or use how='concatenate'"
        )


def _gate_shapes(one: Given) -> tuple[torch.Size, ...]:
    return tuple(gate.shape for own in one.tokens.gates.values() for gate in own if gate is not None)


def _check_gated(given: Sequence[Given], how: str) -> None:
    if BLENDS[how].of_gates is None:
        raise UnsupportedError(
            f"gated prompts each have their own softmax, but how={how!r} makes a prompt with one; activate both instead"
        )
    methods = dict.fromkeys(one.prompt.method for one in given)
    if len(methods) > 1:
        raise UnsupportedError(f"the gated prompts use the methods {', '.join(methods)}; give prompts of one method")
    _check_gate_shapes(given)


def _check_gate_shapes(given: Sequence[Given]) -> None:
    shapes = {one.what: _gate_shapes(one) for one in given}
    if len(set(shapes.values())) > 1:
        shown = ", ".join(f"{what} has {[*map(tuple, own)]}" for what, own in shapes.items())
        raise UnsupportedError(
            f"the prompts have gates of different shapes, per head and per layer: {shown}; give prompts of one shape"
        )


def _wide(function: Function, weights: Sequence[float]) -> Callable[..., Float[Tensor, "..."]]:
    """Blend tensors in float64, on the device of the first."""

    def apply(first: Float[Tensor, "..."], *others: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        wide = torch.float64 if first.device.type != "mps" else torch.float32  # MPS has no float64
        blended = function(weights, [tensor.to(first.device, wide) for tensor in (first, *others)])
        return blended.to(torch.promote_types(first.dtype, torch.float32))

    return apply
