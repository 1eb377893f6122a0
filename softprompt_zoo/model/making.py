"""Create a new prompt, initialize it, and check its contract before any model has it."""

from collections.abc import Mapping
from typing import Any

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.options import Options
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.start_folders import read_folders, start_prompt
from softprompt_zoo.model.saved_state import check_can_be_saved
from softprompt_zoo.model.text_trial import check_place_of_text, check_text_hooks
from softprompt_zoo.prompt.fits import check_room
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.reached import check_reached
from softprompt_zoo.prompt.start import initialize
from softprompt_zoo.prompt.task_heads import copy_head
from softprompt_zoo.prompt.token_checks import check_finite, check_range
from softprompt_zoo.registry.loaded_method import LoadedMethod

NO_WRAPPERS: Mapping[str, Mapping[str, Any]] = {}


def make_prompt(
    method: LoadedMethod,
    options: Mapping[str, Any],
    backbone: Backbone,
    wrappers: Mapping[str, Mapping[str, Any]] = NO_WRAPPERS,
) -> Prompt:
    """Create a prompt and check that its hooks keep their contract on this backbone. Nothing is attached.

    Args:
        method: Its method.
        options: What the user chose.
        backbone: Sizes of the model.
        wrappers: The wrappers that the user chose, by name, with the options of each.

    Returns:
        The prompt, with its initial values.

    Raises:
        TypeError: If an option is unknown or has the wrong type.
        ValueError: If an option has a value that is not allowed, or the prompt is too long for the model.
        PluginError: If a hook breaks its contract.
        UnknownMethodError: If there is no such wrapper.
        UnsupportedError: If the method does not work on this model.
    """
    config = method.read_options(options)
    chosen = method.wrappers.choose(wrappers)
    _check_can_be_written({f"method {method.name!r}": config} | {f"wrapper {n!r}": one for n, one in chosen.items()})
    check_room(config, backbone)
    config = read_folders(config, backbone)
    learned = method.make_parameters(config, backbone)
    head = copy_head(backbone.inside.task_head) if config.train_head else None
    if options.get("train_head") and head is None:
        raise UnsupportedError(
            f"train_head is True, but this model has no task head ({backbone.model_type}): a head that predicts words "
            "is not one. Leave train_head out, or choose a model with a task head, such as "
            "AutoModelForSequenceClassification"
        )
    if backbone.device.type != "meta":
        initialize(method, config, learned, head, backbone, start_prompt(config, backbone))
    check_can_be_saved(learned, backbone, method.describe_parameters())
    prompt = Prompt(method, config, learned, head)
    prompt.wrappers = chosen
    with torch.no_grad():
        _check_answers(prompt, backbone)
    return prompt


def _check_can_be_written(options: Mapping[str, Options]) -> None:
    """Refuse options that cannot be saved, before training rather than after it."""
    for owner, one in options.items():
        try:
            one.to_dict()
        except TypeError as error:
            raise TypeError(f"{error} (an option of {owner})") from error


def _check_answers(prompt: Prompt, backbone: Backbone) -> None:
    """Check what the hooks return against their contract, and the numbers against the model's range."""
    check_place_of_text(prompt, backbone)
    with torch.enable_grad():
        tokens = prompt.place(backbone).tokens
    check_reached(prompt, tokens, backbone)
    try:
        merged = prompt.merged_tokens(backbone)
    except UnsupportedError:  # its method says that it has no merged form
        merged = tokens
    check_text_hooks(prompt, backbone)
    if backbone.device.type != "meta":
        check_finite(tokens, prompt.loaded.describe("build_virtual_tokens"))
        check_finite(merged, prompt.loaded.describe("merge"))
        check_range(tokens.tensors(), backbone.dtype, "the new prompt")
