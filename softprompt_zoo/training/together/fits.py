"""Which trainings can share batches; the others are refused before the first step and have to be trained alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.together.losses import losses_apart

if TYPE_CHECKING:
    from transformers import TrainingArguments

OWN = ("learning_rate", "seed", "output_dir")
"""Arguments in which trainings that share batches may differ."""
ALONE: dict[str, Any] = {"gradient_accumulation_steps": 1, "load_best_model_at_end": False, "world_size": 1}
"""Arguments with a required value."""
TOLERANCES = {torch.float32: 1e-4}
"""Largest relative difference between a loss alone and together, by the model's number format."""
HALF_PRECISION = 0.05
"""The same for sums rounded to 8 or 11 bits; it only has to detect losses of another kind."""


def check_alike(arguments: "Mapping[str, TrainingArguments]", prompts: Sequence[str]) -> None:
    """Reject trainings that differ in more than the arguments that may differ.

    Args:
        arguments: Arguments of each training, by the name of its prompt.
        prompts: Names of the model's prompts.

    Raises:
        ValueError: If they belong to other prompts, or a setting differs that has to be the same.
        UnsupportedError: If a setting has a value that shared batches do not support.
    """
    if list(arguments) != list(prompts):
        raise ValueError(
            f"arguments has {', '.join(arguments) or 'nothing'}, but the model has the prompts "
            f"{', '.join(prompts)}; give one for each, in this order"
        )
    (first, shared), *others = arguments.items()
    if shared.max_steps < 1:
        raise ValueError(f"max_steps of {first} is {shared.max_steps}; set the number of steps that all take")
    for field, needed in ALONE.items():
        found = getattr(shared, field)
        if found != needed:
            raise UnsupportedError(f"{field} is {found}; shared batches need {needed}; train alone")
    for name, own in others:
        _check_same(first, shared.to_dict(), name, own.to_dict())


def _check_same(first: str, shared: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> None:
    for field, value in own.items():
        if field not in OWN and value != shared[field]:
            raise ValueError(
                f"{first} and {name} cannot be trained together: their {field} is {shared[field]!r} and {value!r}; "
                f"only {', '.join(OWN)} may differ"
            )


@torch.no_grad()
def check_step(model: Any, batch: Mapping[str, Tensor]) -> None:
    """Reject prompts whose losses in a shared batch differ from those that they have alone.

    Args:
        model: The model with all prompts. Not changed except for its mode.
        batch: The batch of a step, with `labels` and `prompts`.

    Raises:
        UnsupportedError: If a training step draws random numbers, or a loss depends on rows of other prompts.
    """
    model.train()
    before = _random_state(model)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    names = list(model.prompts)
    together = _losses(model, batch)
    if not torch.equal(before, _random_state(model)):
        raise UnsupportedError(
            "a training step draws random numbers, for example for dropout, and would draw different ones together "
            "than alone; set dropout to 0, or train alone"
        )
    for index, loss in zip(batch["prompts"].unique_consecutive().tolist(), together, strict=True):
        _check_loss(model, names[index], _rows(batch, index), float(loss))
    model.eval()


def _losses(model: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the losses in the shared batch, if they can be computed."""
    try:
        return losses_apart(model, batch)[1]
    except UnsupportedError as error:
        if any(prompt.has("training_loss") for prompt in model.prompts.values()):
            raise UnsupportedError("it has its own training loss, which is computed from its own batches") from error
        raise


def _check_loss(model: Any, name: str, rows: dict[str, Tensor], together: float) -> None:
    model.prompts.activate(name)
    alone = float(model(**rows).loss)
    tolerance = TOLERANCES.get(model.dtype, HALF_PRECISION)
    if not abs(alone - together) <= tolerance * max(1.0, abs(alone)):
        raise UnsupportedError(
            f"{name} has a loss of {alone:.6g} alone and {together:.6g} in a batch with others, so it has to be "
            "trained alone"
        )


def _rows(batch: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the rows of one prompt, without `prompts`."""
    own = batch["prompts"] == index
    return {key: value[own] for key, value in batch.items() if key != "prompts"}


def _random_state(model: Any) -> Tensor:
    """Return the states of the random generators that a step may use."""
    device = model.device
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return torch.cat(states)
