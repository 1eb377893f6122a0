"""Prompts that are made of ready virtual tokens, and ready prompts that are put on a model."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.method_config import GIVEN, MethodConfig
from softprompt_zoo.errors import BackboneMismatchError, ShapeError, UnsupportedError
from softprompt_zoo.prompt.prompt import PlainTokens, Prompt
from softprompt_zoo.prompt.task_heads import copy_head
from softprompt_zoo.prompt.token_checks import check_range
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.sites.tasks import check_task
from softprompt_zoo.tokens.kinds import check_virtual_tokens
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def check_room(config: MethodConfig, backbone: Backbone) -> None:
    """Refuse a prompt that leaves no room for text.

    Args:
        config: What the user chose.
        backbone: Sizes of the model.

    Raises:
        UnsupportedError: If it is as long as the model's positions, or longer.
    """
    positions = backbone.max_positions
    if positions is not None and config.num_virtual_tokens >= positions:
        raise UnsupportedError(
            f"num_virtual_tokens is {config.num_virtual_tokens}, which leaves no room for text in the model's "
            f"{positions} positions; {config.advice_to_shorten(positions - 1)}"
        )


@torch.no_grad()
def check_shared_room(prompts: Mapping[str, Prompt], backbone: Backbone) -> None:
    """Refuse prompts that leave no room for text together.

    Args:
        prompts: What a row shall see, by name.
        backbone: Sizes of the model.

    Raises:
        UnsupportedError: If they take all of the model's positions, or more.
    """
    bound = backbone.max_positions
    if bound is None or sum(prompt.num_virtual_tokens for prompt in prompts.values()) < bound:
        return
    placed = [prompt.place(backbone).tokens for prompt in prompts.values()]
    at_input = sum([tokens.count for tokens in placed if tokens.at_input is not None])
    at_site = sum([tokens.length(backbone.kind.site) for tokens in placed])  # gated tokens take no positions
    count = max(at_input, at_site) if backbone.kind.has_two_texts else at_input + at_site
    if count >= bound:
        raise UnsupportedError(
            f"the virtual tokens of {', '.join(map(repr, prompts))} are {count}, which leaves no room for text in the "
            f"model's {bound} positions; choose fewer prompts, or shorter ones"
        )


@torch.no_grad()
def check_ranges(prompts: Mapping[str, Prompt], backbone: Backbone, where: str) -> None:
    """Refuse prompts whose numbers the model's dtype cannot hold.

    Args:
        prompts: By name.
        backbone: Sizes of the model.
        where: Where they stand, for the message.

    Raises:
        UnsupportedError: If it cannot.
    """
    for name, prompt in prompts.items():
        check_range(prompt.place(backbone).tokens.tensors(), backbone.dtype, f"prompt {name!r} {where}")


@torch.no_grad()
def plain_prompt(
    tokens: VirtualTokens,
    backbone: Backbone,
    like: Placement | None = None,
    source: Prompt | None = None,
    head: nn.ModuleDict | None = None,
) -> Prompt:
    """Make a prompt of plain tokens, which can be trained, saved and put on a model.

    Args:
        tokens: Its tokens, which become parameters.
        backbone: Sizes of the model.
        like: A placement with the dropout and the visibility it shall have; `None` for neither.
        source: A prompt it was made of; gated tokens keep its method, others get one whose prompts are plain.
        head: Its trained task head.

    Returns:
        The prompt, in no model.

    Raises:
        UnsupportedError: If it leaves no room for text, or no method places it like `like`.
    """
    count = tokens.count
    has_head = head is not None
    config: MethodConfig
    like = Placement(tokens) if like is None else like
    if source is not None and tokens.gates:
        method = source.loaded
        config = dataclasses.replace(source.config, num_virtual_tokens=count, train_head=has_head)
    else:
        method = registry.holder_of(tokens)
        wanted = {
            "init": GIVEN,
            "dropout": like.dropout,
            "always_visible": like.always_visible,
            "pools_prompt": like.is_pooled,
        }
        fields = {field.name for field in dataclasses.fields(method.config_class)}
        options = {name: value for name, value in wanted.items() if name in fields}
        config = method.config_class.from_options({"num_virtual_tokens": count, "train_head": has_head, **options})
    check_room(config, backbone)
    contiguous = {
        name: tensor.detach().to(backbone.device, copy=True).contiguous() for name, tensor in tokens.tensors().items()
    }
    prompt = Prompt(method, config, PlainTokens(contiguous), head)
    placed = prompt.place(backbone)
    for name in ("dropout", "always_visible", "is_pooled"):
        found, expected = getattr(placed, name), getattr(like, name)
        if found != expected:
            raise UnsupportedError(
                f"the prompts have {name}={expected}, which plain prompts of the method {method.name!r} cannot have "
                f"({found}); keep the prompts apart"
            )
    return prompt


def fitting_copy(prompt: Prompt, options: Mapping[str, Any], backbone: Backbone) -> Prompt:
    """Copy a ready prompt for a model, after checking that it fits.

    Args:
        prompt: Any prompt. Not changed.
        options: What stood beside it, which is refused.
        backbone: Sizes of the model.

    Returns:
        The copy, trainable where the original is.

    Raises:
        TypeError: If there are options.
        BackboneMismatchError: If it was made for a model of other sizes, or its head is not this model's.
        UnsupportedError: If it leaves no room for text, cannot be placed in this model, or holds numbers that the
            model's dtype cannot.
    """
    if options:
        raise TypeError(f"option {next(iter(options))!r} stands beside a ready prompt, which has its options already")
    made_for = None if prompt.backbone is None else prompt.backbone.sizes()
    check_sizes(made_for, backbone, "the prompt")
    check_room(prompt.config, backbone)
    head = {} if prompt.head is None else prompt.head.state_dict()
    mine = None if prompt.head is None else copy_head({n: m for n, m in backbone.heads.items() if n in prompt.head})
    own = {} if mine is None else mine.state_dict()
    wrong = next((key for key, tensor in head.items() if key not in own or own[key].shape != tensor.shape), None)
    if wrong is not None:
        raise BackboneMismatchError(
            f"the prompt's trained task head has {wrong!r} {tuple(head[wrong].shape)}, which this model has not; "
            "put it on a model of the class and the number of labels it was trained with"
        )
    copied = copy.deepcopy(prompt).to(backbone.device)
    copied.widen()
    with torch.no_grad():
        try:
            placed = copied.place(backbone)
            count, tasks = copied.num_virtual_tokens, copied.config.tasks
            check_virtual_tokens(placed.tokens, backbone, count, tasks, "the prompt")
            check_range(placed.tokens.tensors(), backbone.dtype, "the prompt")
        except ShapeError as error:
            raise BackboneMismatchError(f"the prompt does not fit this model: {error}") from error
    return copied


def check_sizes(sizes: Mapping[str, Any] | None, backbone: Backbone, what: str) -> None:
    """Refuse prompts that were made for a model of other sizes.

    Args:
        sizes: Sizes of the model they were made for; `None` if they are not known.
        backbone: Sizes of the model they shall be used with.
        what: What they are, for the message.

    Raises:
        BackboneMismatchError: If they differ.
    """
    own = backbone.sizes()
    wrong = None if sizes is None else next((key for key in own if sizes.get(key) != own[key]), None)
    if sizes is not None and wrong is not None:
        raise BackboneMismatchError(
            f"{what} was made for a model with {wrong} {_in_words(sizes.get(wrong))}; this one has "
            f"{_in_words(own[wrong])}; use it with the model it was made for"
        )


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    return ", ".join(
        f"{site}: {len(layers)} layers of (kv_heads, head_dim) {layers[0]}" for site, layers in value.items()
    )


def one_task(tokens: VirtualTokens, task_id: int, name: str) -> VirtualTokens:
    """Take one task's tokens out of those of a prompt with tasks.

    Args:
        tokens: The plain tokens.
        task_id: The task.
        name: The prompt's name, for messages.

    Returns:
        Tokens `(tokens, hidden)`.

    Raises:
        ValueError: If the prompt does not have that task.
    """
    if tokens.num_tasks is None:
        raise ValueError(f"task is {task_id!r}, and prompt {name!r} has no tasks; leave it out")
    check_task(task_id, tokens.num_tasks, name)
    return tokens.task(task_id)
