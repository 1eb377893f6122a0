"""Training in which nothing is trained: a warning at the first forward, an error at the first step.

torch raises an error only if the loss has no gradient; with gradient checkpointing it has that of the embedded text.
"""

import warnings
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.context import is_disabled
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.sites.call import Call

_UNTRAINED: "weakref.WeakKeyDictionary[Prompts, str]" = weakref.WeakKeyDictionary()
"""Models' prompts whose last training forward had nothing to train, and what to do."""
_TOLD: "weakref.WeakSet[Prompts]" = weakref.WeakSet()
_HANDLES: list[Any] = []


def note_training(model: Any, call: Call, is_given: bool, has_labels: bool) -> None:
    """Warn if nothing is trained in a forward of a training, and refuse the next step of an optimizer.

    Args:
        model: The prompted model, in training mode, with gradients enabled.
        call: The prompts of this forward.
        is_given: Whether the call itself names its prompts, which may be none or those of a bank.
        has_labels: Whether it computes a loss.
    """
    prompts: Prompts = model.prompts
    used = _names_used(prompts, call)
    if any([prompts[name].is_trained for name in used]):
        _UNTRAINED.pop(prompts, None)
    elif used or not is_given:
        _note_untrained(model, used, has_labels)


def _names_used(prompts: Prompts, call: Call) -> list[str]:
    """Return which of a model's own prompts a call uses, without duplicates."""
    return [name for name in dict.fromkeys([part.name for part in call.placements]) if name in prompts]


def _note_untrained(model: Any, used: list[str], has_labels: bool) -> None:
    """Refuse the next step, and warn once if there is a loss; unless something else is trained."""
    prompts: Prompts = model.prompts
    if is_disabled(prompts) or trains_beside_prompts(model):
        return
    message = _UNTRAINED[prompts] = nothing_trained(prompts, used)
    if not _HANDLES:
        _HANDLES.append(register_optimizer_step_pre_hook(_before_step))
    if has_labels and prompts not in _TOLD:
        _TOLD.add(prompts)
        warnings.warn(message, stacklevel=5)


def trains_beside_prompts(model: Any) -> bool:
    """Return whether a model trains anything besides its prompts: an adapter, or its own layers."""
    own = {id(parameter) for parameter in model.prompts.parameters()}
    return any(parameter.requires_grad and id(parameter) not in own for parameter in model.parameters())


def nothing_trained(prompts: Prompts, used: list[str]) -> str:
    """Return why nothing is trained, and what to do.

    Args:
        prompts: A model's prompts.
        used: Names of those that the training uses; none of them is trained.

    Returns:
        The message.
    """
    trained = [name for name, prompt in prompts.items() if prompt.is_trained]
    state = f"{', '.join(map(repr, used))} frozen" if used else "none active"
    if trained:
        return (
            f"nothing is trained: of the model's prompts {state}; {trained[0]!r} can be trained but is not used, so "
            f"activate it with model.prompts.activate({trained[0]!r})"
        )
    if not used and len(prompts):
        state += " and all frozen"
    return (
        f"nothing is trained: of the model's prompts {state}; load them with zoo.load(…, trainable=True), or call "
        "model.prompts[name].requires_grad_(), and activate them"
    )


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    has_closure = any(closure is not None for closure in (*args[1:], *kwargs.values()))
    if not _UNTRAINED or has_closure or _has_gradient(optimizer):
        return
    message = next(iter(_UNTRAINED.values()))
    _UNTRAINED.clear()
    raise UnsupportedError(message)


def _has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
