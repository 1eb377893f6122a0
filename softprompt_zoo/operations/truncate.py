"""Shorten prompts to their most useful tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt_zoo.config.checks import check_choice, check_positive_integer
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.operations.attention_batches import Batch
from softprompt_zoo.operations.attention_mass import measure_attention
from softprompt_zoo.operations.given import GivenPrompt, read_given
from softprompt_zoo.prompt.plain import plain_prompt
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.task_heads import copy_head
from softprompt_zoo.shapes import Float

BY = ("attention", "norm")


@torch.no_grad()
def truncate(
    prompt: GivenPrompt,
    num_virtual_tokens: int,
    *,
    by: str | None = None,
    inputs: Batch | Sequence[Batch] | None = None,
    model: PreTrainedModel | None = None,
) -> Prompt:
    """Make a shorter prompt of the most useful tokens of one. The original is not changed.

    The tokens that are kept stay in their order. In front of a causal model, the text then starts earlier, at
    `num_virtual_tokens`, and an input-level token no longer sees those that were removed. This may change what a token
    does, so measure the shorter prompt, or train it further.

    Args:
        prompt: A prompt, `model.prompts[name]`, or the folder of a saved one.
        num_virtual_tokens: How many tokens to keep, at least 1.
        by: `"attention"`: those to which the text of `inputs` attends most, a mean over all layers and sites. `"norm"`:
            those whose embedding, or whose values over all layers, have the largest L2 norm. By default attention if
            there are `inputs`.
        inputs: A batch as the model's forward takes it, or several, for `"attention"`.
        model: The model that the prompt is for; `"attention"` needs it, and the prompt must be one of its prompts.

    Returns:
        A trainable prompt that is not on any model, with the same weight and a copy of the trained task head, if there
        is one: add it with `model.prompts.add(name, prompt)`.

    Raises:
        TypeError: If `prompt` is neither a prompt nor a folder.
        ValueError: If there are not that many tokens, or `by` and `inputs` do not go together.
        UnsupportedError: If the prompt has tasks, or the attention to its tokens cannot be seen.
    """
    by = by or ("norm" if inputs is None else "attention")
    check_choice("by", by, BY)
    check_positive_integer("num_virtual_tokens", num_virtual_tokens)
    _check_inputs(by, inputs)
    [given], backbone, model_prompts = read_given([("prompt", prompt)], model)
    _check_length(num_virtual_tokens, given.prompt.num_virtual_tokens)
    norms = given.tokens.features(with_keys=False).norm(dim=1)
    usefulness = norms if by == "norm" else _attention(given.prompt, model, inputs)
    # A stable sort: of equal ones, the first are kept.
    kept = usefulness.argsort(descending=True, stable=True)[:num_virtual_tokens].sort().values
    head = copy_head(dict((given.prompt.head or nn.ModuleDict()).items()))
    tokens = given.tokens.map(lambda tensor: tensor.index_select(-2, kept.to(tensor.device)))
    shorter = plain_prompt(tokens, backbone, given.placement, given.prompt, head)
    shorter.weight = given.prompt.weight
    if model_prompts is not None:
        shorter.set_model_prompts(model_prompts)
    return shorter


def _check_inputs(by: str, inputs: object) -> None:
    if (inputs is None) == (by == "attention"):
        verb = "needs" if inputs is None else "takes no"
        raise ValueError(f"by={by!r} {verb} inputs, batches of the model's input")


def _check_length(wanted: int, most: int) -> None:
    if wanted > most:
        raise ValueError(f"num_virtual_tokens is {wanted}, but the prompt has {most} tokens")


def _name_of(prompt: Prompt, prompts: Mapping[str, Prompt]) -> str:
    for name, own in prompts.items():
        if own is prompt:
            return name
    known = ", ".join(map(repr, prompts)) or "none"
    raise ValueError(
        f"the prompt is not one of the model's prompts ({known}); add it first: model.prompts.add(name, prompt)"
    )


def _attention(prompt: Prompt, model: Any, inputs: Any) -> Float[Tensor, " tokens"]:
    if model is None:
        raise ValueError("by='attention' needs the model that the prompt is on: model=…")
    name = _name_of(prompt, getattr(model, "prompts", {}))
    found = measure_attention(model, [name], inputs)[name].tokens
    if not found:
        raise UnsupportedError(
            f"the attention to each token of prompt {name!r} cannot be seen in {type(model).__name__} (it is gated, or "
            "the model shows only the weights of the text); use by='norm'"
        )
    return torch.cat(list(found.values())).mean(dim=0).cpu()
