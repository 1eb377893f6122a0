"""Turn prompts of any kind into a prefix that inference engines can hold in their caches."""

from collections.abc import Mapping

from softprompt_zoo.backbone.peft_layers import acting_adapters
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.files.damage import check_numbers
from softprompt_zoo.model.plain_prefix import PrefixMaker
from softprompt_zoo.prompt.prompt import Prompt


def engine_prefix(maker: PrefixMaker, prompts: Mapping[str, Prompt], task: int | None = None) -> Prompt:
    """Combine prompts into one plain prefix, whose keys and values an engine can put in front of a text as they are.

    Args:
        maker: Makes prefixes for the model.
        prompts: By name, in order. Not changed.
        task: The task to use for those that have tasks.

    Returns:
        The prefix, which is not on any model; it has only keys and values.

    Raises:
        ValueError: If a prompt does not have that task.
        UnsupportedError: If an engine could not reproduce what the prompts do; says why.
    """
    check_model(maker)
    for name, prompt in prompts.items():
        _check_prompt(maker, name, prompt)
    folded = maker.fold(prompts, task)
    placement = folded.place(maker.backbone)
    names = ", ".join(map(repr, prompts))
    if placement.always_visible:
        raise UnsupportedError(
            f"prompt {names} has always_visible=True, but what an engine holds in its cache slides out of the model's "
            "windows; train it with always_visible=False, or keep it in our format"
        )
    [(site, shapes)] = maker.backbone.layers.items()
    own = placement.tokens.at(site)
    differing = None if own is None else own.differing_layer(shapes)
    if differing is not None:
        raise UnsupportedError(
            f"layer {differing[0]} of this model reads the keys and values of layer {differing[1]}, but prompt {names} "
            "has different ones there; keep the prompt in our format"
        )
    return folded.requires_grad_(False)


def check_model(maker: PrefixMaker) -> None:
    """Refuse a model for which no engine could hold prefixes.

    Args:
        maker: Makes prefixes for the model.

    Raises:
        UnsupportedError: If it is not causal, or an adapter such as a LoRA acts on it.
    """
    if not maker.backbone.kind.is_causal:
        raise UnsupportedError(
            f"{type(maker.model).__name__} is not a causal model, and engines keep keys and values only in front of "
            "the text of causal models; keep the prompt in our format"
        )
    acting = acting_adapters(maker.model)
    if acting:
        raise UnsupportedError(
            f"the adapter {acting[0]!r} acts in the model's layers, so the keys and values that it computes fit only "
            "the model with the adapter; merge it into the weights first (merge_and_unload), or switch it off "
            "meanwhile (disable_adapter, disable_adapters)"
        )


def _check_prompt(maker: PrefixMaker, name: str, prompt: Prompt) -> None:
    if prompt.head is not None:
        raise UnsupportedError(
            f"prompt {name!r} has its own trained task head, which a prefix cannot hold; keep the prompt in our format"
        )
    check_numbers(prompt.merged_tokens(maker.backbone).tensors(), f"prompt {name!r}")
