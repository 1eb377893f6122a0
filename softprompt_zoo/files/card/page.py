"""The content of a card: what the saved prompts are for, how they were made, and how to load them."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from softprompt_zoo.embedded import EMBEDDED_MODELS, cache_folder
from softprompt_zoo.files.card.card_file import PLACE, USE
from softprompt_zoo.files.hub.names import is_hub_name
from softprompt_zoo.files.peft_fields import named_task
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.prompt_set import PromptSet

LIBRARY = "softprompt-zoo"
LONGEST_VALUE = 200
"""Maximum number of characters of an option's value. Our choice."""
PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
"""Maps PEFT's name of the task in a class's name to the hub's. Models that are not named after their task, or write
text after reading another one or images, correspond to several there."""


@dataclasses.dataclass(frozen=True)
class Described:
    """The saved prompts to describe."""

    own: PromptSet
    """The model's prompts."""
    names: Sequence[str]
    """Names of those that were saved."""
    active: Sequence[str]
    """Names of those that are active after loading."""
    adapters: Sequence[str]
    """Names of the PEFT adapters that were saved with them."""
    not_for_peft: str | None
    """Why PEFT cannot load the active one; `None` if it can."""


def page(saved: Described) -> str:
    """Write the card of saved prompts.

    Args:
        saved: The prompts.

    Returns:
        The card, without the mark.
    """
    base = hub_name(saved.own.base_name)
    sections = [_front_matter(saved, base), _head(saved, base), _prompts(saved), _use(saved, base)]
    return "\n".join(sections)


def hub_name(name: str | None) -> str | None:
    """Return a model's name on the hub; `None` for a folder, whose path is private.

    Args:
        name: Name or path that the model was loaded from.
    """
    embedded = {str(cache_folder() / f"{one.name}-{one.version}"): one.hub_id for one in EMBEDDED_MODELS.values()}
    if name in embedded:
        return embedded[name]
    return name if name and is_hub_name(name) and not os.path.isdir(name) else None


def _front_matter(saved: Described, base: str | None) -> str:
    from huggingface_hub import ModelCardData

    methods = sorted({prompt.method.replace("_", "-") for prompt in _chosen(saved).values()})
    more: dict[str, Any] = {} if base is None else {"base_model": base, "base_model_relation": "adapter"}
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=PIPELINES.get(named_task(saved.own.architecture) or ""),
        tags=["soft-prompt", *methods, *([] if saved.not_for_peft else ["peft"])],
        **more,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _chosen(saved: Described) -> dict[str, Prompt]:
    return {name: saved.own.prompts[name] for name in saved.names}


def _head(saved: Described, base: str | None) -> str:
    model = f"[{base}](https://huggingface.co/{base})" if base else f"a `{saved.own.architecture}`"
    prompts = "A soft prompt" if len(saved.names) == 1 else f"{len(saved.names)} soft prompts"
    return (
        f"# {prompts} for {base or saved.own.architecture}\n\n"
        f"{prompts} for {model}, made with softprompt_zoo. The model is frozen; its weights are not included.\n\n"
        "The author has not chosen a license; to choose one, add `license:` to the top of this file.\n"
    )


def _prompts(saved: Described) -> str:
    lines = [
        "## Prompts",
        "",
        "| name | method | virtual tokens | parameters | active |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, prompt in _chosen(saved).items():
        method = f"{prompt.method}, merged" if prompt.is_merged else prompt.method
        is_active = "yes" if name in saved.active else "no"
        lines.append(f"| {name} | {method} | {prompt.num_virtual_tokens} | {prompt.num_parameters:,} | {is_active} |")
    for name, prompt in _chosen(saved).items():
        lines += ["", f"`{name}`: {prompt.loaded.summary}", *_options(prompt)]
    if saved.adapters:
        lines += ["", f"With PEFT's {', '.join(f'`{name}`' for name in saved.adapters)} in the model's layers."]
    return "\n".join(lines) + "\n"


def _options(prompt: Prompt) -> list[str]:
    """List the options that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(prompt.config)}
    chosen = {name: value for name, value in prompt.config.to_dict().items() if value != defaults.get(name)}
    lines = [f"- {name}: `{value!r:.{LONGEST_VALUE}}`" for name, value in chosen.items()]
    lines += [f"- wrapper: `{name}`" for name in prompt.wrappers]
    lines += ["- with a trained copy of the model's task head"] if prompt.head is not None else []
    return ["", *lines] if lines else []


def _use(saved: Described, base: str | None) -> str:
    architecture = saved.own.architecture
    source = repr(base) if base else '"the model it was trained on"'
    load = [
        f"from transformers import {architecture}",
        "",
        f"base = {architecture}.from_pretrained({source})",
    ]
    ours = ["```python", "import softprompt_zoo as zoo", *load, f'model = zoo.load(base, "{PLACE}")', "```"]
    peft = [f"PEFT cannot load it: {saved.not_for_peft}."]
    if saved.not_for_peft is None:
        imported = ["from peft import PeftModel", *load, f'model = PeftModel.from_pretrained(base, "{PLACE}")']
        peft = ["Or with PEFT alone:", "", "```python", *imported, "```"]
    return USE + "\n" + "\n".join([*ours, "", *peft]) + "\n"
