"""Whether a prompt fits a model: its sizes, its numbers, and its task head."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.saved_sizes import check_sizes
from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.errors import BackboneMismatchError, ShapeError, UnsupportedError
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.task_heads import copy_saved_head
from softprompt_zoo.prompt.token_checks import check_range
from softprompt_zoo.tokens.kinds import check_virtual_tokens
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


def fitting_copy(prompt: Prompt, options: Mapping[str, Any], backbone: Backbone) -> Prompt:
    """Copy a ready prompt for a model, after checking that it fits.

    Args:
        prompt: Any prompt. Not changed.
        options: Options passed with it, which are refused.
        backbone: Sizes of the model.

    Returns:
        The copy, trainable if the original is.

    Raises:
        TypeError: If there are options.
        BackboneMismatchError: If it was made for a model of different sizes, or its head does not fit this model's.
        UnsupportedError: If it leaves no room for text, cannot be placed in this model, or has numbers that the
            model's dtype cannot hold.
    """
    if options:
        raise TypeError(f"option {next(iter(options))!r} was given with a ready prompt, which already has its options")
    made_for = None if prompt.backbone is None else prompt.backbone.sizes()
    check_sizes(made_for, backbone.sizes(), "the prompt")
    check_room(prompt.config, backbone)
    if prompt.head is not None:
        fitting_head(prompt.head.state_dict(), backbone, "the prompt")
    copied = copy.deepcopy(prompt).to(backbone.device)
    copied.widen()
    with torch.no_grad(), fitting("the prompt does not fit this model"):
        placed = copied.place(backbone)
        count, tasks = copied.num_virtual_tokens, copied.config.tasks
        check_virtual_tokens(placed.tokens, backbone, count, tasks, "the prompt")
        check_range(placed.tokens.tensors(), backbone.dtype, "the prompt")
    return copied


@contextlib.contextmanager
def fitting(refusal: str, advice: str = "", kind: type[Exception] = BackboneMismatchError) -> Iterator[None]:
    """Raise an error that names the misfit if tensors turn out to have wrong shapes.

    Args:
        refusal: The start of the message.
        advice: The end of the message.
        kind: The type of the error.

    Raises:
        Exception: Of that type, with the shapes, if shapes do not match.
    """
    try:
        yield
    except (ShapeError, RuntimeError) as error:
        raise kind(f"{refusal}: {error}{advice}") from error


def fitting_tokens(prompt: Prompt, backbone: Backbone, what: str) -> VirtualTokens:
    """Return the plain tokens of a prompt, if they fit a model's sizes.

    Args:
        prompt: The prompt. Not changed.
        backbone: Sizes of the model.
        what: Its name in messages.

    Returns:
        Its plain tokens, as copies without gradient.

    Raises:
        ShapeError: If their sizes differ.
    """
    tokens = prompt.merged_tokens(backbone)
    check_virtual_tokens(tokens, backbone, prompt.num_virtual_tokens, prompt.config.tasks, what)
    return tokens


def fitting_head(
    state: Mapping[str, Tensor], backbone: Backbone, where: str, is_whole: bool = True
) -> nn.ModuleDict | None:
    """Build the task head that a prompt has trained, for a model.

    Args:
        state: The trained tensors, by their names in the model. Copied.
        backbone: The model's own heads. Not changed.
        where: The owner of the head, for messages.
        is_whole: Whether everything in the head was trained; otherwise the rest has the model's own values.

    Returns:
        The head, in float32 at least; `None` if nothing was trained.

    Raises:
        BackboneMismatchError: If the model's head is a different one.
    """
    names = dict.fromkeys(key.partition(".")[0] for key in state)
    head = copy_saved_head(names, backbone.inside.heads, where) if names else None
    if head is None:
        return None
    advice = "; add it to a model with the class and the number of labels that it was trained with"
    with fitting(f"{where} has a trained task head that does not fit this model's", advice):
        unexpected = head.load_state_dict(dict(state), strict=is_whole).unexpected_keys
        if unexpected:
            raise RuntimeError(f"it has {unexpected[0]!r}, which the model's lacks")
    return head


def check_room(config: MethodConfig, backbone: Backbone) -> None:
    """Refuse a prompt that leaves no room for text.

    Args:
        config: What the user chose.
        backbone: Sizes of the model.

    Raises:
        UnsupportedError: If it takes all of the model's positions, or more.
    """
    positions = backbone.max_positions
    if positions is not None and config.num_virtual_tokens >= positions:
        raise UnsupportedError(
            f"num_virtual_tokens is {config.num_virtual_tokens}, which leaves no room for text in the model's "
            f"{positions} positions; {config.advice_to_shorten(positions - 1)}"
        )
