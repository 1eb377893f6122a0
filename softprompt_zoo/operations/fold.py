"""Fold a combination of prompts into one plain prefix: exactly the keys and values that the text sees."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from softprompt_zoo.model.attachment import prompts_of
from softprompt_zoo.model.plain_prefix import PrefixMaker
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.operations.given import check_idle_task
from softprompt_zoo.sites.prompts_argument import check_combination


@torch.no_grad()
def fold(
    model: PreTrainedModel, names: str | Sequence[str] | None = None, *, name: str = "folded", task: int | None = None
) -> PreTrainedModel:
    """Fold a combination of prompts into one plain prefix with the same outputs, and activate it.

    On a causal model, any prompts that share the text's softmax can be folded: those at the input embeddings become the
    keys and values that the model computes for them after whatever is in front of them. On other models, prompts made
    of keys and values can be folded if they have equally many tokens at every site. The folded prompt is merged: it has
    the outputs of eval mode, and no dropout. Like all keys and values, it does not predict the first label of a loss.

    Args:
        model: A model with prompts. It gets one more; the others stay.
        names: The prompts, in order, or one; by default the active ones.
        name: Name of the new prompt.
        task: The task to use for those prompts that have tasks.

    Returns:
        The same model.

    Raises:
        PromptExistsError: If the name is already taken.
        UnknownPromptError: If a prompt does not exist.
        TypeError: If `names` is neither a name nor a list of names.
        ValueError: If there is nothing to fold, a prompt does not have that task, or none has tasks.
        UnsupportedError: If the prompts cannot become one prefix; says why. Nothing is changed.
    """
    prompts = prompts_of(model, "fold")
    combination = combination_of(prompts, names, task)
    prompts.check_name(name)
    folded = PrefixMaker.of(model).fold({part: prompts[part] for part in combination}, task)
    prompts.insert(name, folded)
    prompts.activate(name)
    return model


def combination_of(prompts: Prompts, names: str | Sequence[str] | None, task: int | None) -> tuple[str, ...]:
    """Return the prompts to fold; arguments and errors as for `fold`."""
    combination = prompts.active if names is None else check_combination(names, prompts.keys(), "names")
    if not combination:
        known = ", ".join(map(repr, prompts)) or "none"
        raise ValueError(f"there is nothing to fold: no prompt is active; give names out of {known}")
    check_idle_task(task, map(prompts.__getitem__, combination))
    return combination
