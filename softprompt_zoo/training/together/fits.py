"""Which trainings can share their batches: what is refused, before a step is taken, is to be trained alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.together.losses import losses_apart

if TYPE_CHECKING:
    from transformers import TrainingArguments

OWN = ("learning_rate", "seed", "output_dir")
"""Arguments in which trainings that share their batches may differ."""
ALONE: dict[str, Any] = {"gradient_accumulation_steps": 1, "load_best_model_at_end": False, "world_size": 1}
"""Arguments that they have to have."""
TOLERANCES = {torch.float32: 1e-4}
"""Of a loss alone and together, relative, by the model's number format."""
HALF_PRECISION = 0.05
"""The same where sums are rounded to eight or eleven bits; it is there to find other losses, not to measure."""


def check_alike(arguments: "Mapping[str, TrainingArguments]", prompts: Sequence[str]) -> None:
    """Refuse trainings that differ in more than what each has of its own.

    Args:
        arguments: Those of each training by its prompt's name.
        prompts: The names of the model's prompts.

    Raises:
        ValueError: If they are those of other prompts, or a setting differs that has to be the same.
        UnsupportedError: If a setting has a value that trainings together cannot have.
    """
    if list(arguments) != list(prompts):
        raise ValueError(
            f"arguments are those of {', '.join(arguments) or 'nothing'}, and the model has the prompts "
            f"{', '.join(prompts)}; give one for each, in this order"
        )
    (first, shared), *others = arguments.items()
    if shared.max_steps < 1:
        raise ValueError(f"max_steps of {first} is {shared.max_steps}; say how many steps all take")
    for field, needed in ALONE.items():
        found = getattr(shared, field)
        if found != needed:
            raise UnsupportedError(f"{field} is {found}; together it can only be {needed}; train alone")
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
    """Refuse prompts whose losses in a shared batch are not those that they have alone.

    Args:
        model: The model with all the prompts. Not changed, but for its mode.
        batch: The batch of a step, with `labels` and `prompts`.

    Raises:
        UnsupportedError: If a prompt's training draws random numbers, or its loss depends on other rows.
    """
    model.train()
    before = _random_state(model)
    batch = {key: value.to(model.device) for key, value in batch.items()}
    names = list(model.prompts)
    together = _losses(model, batch)
    if not torch.equal(before, _random_state(model)):
        raise UnsupportedError(
            "a training step draws random numbers, of a dropout say, and would draw others together than alone; set "
            "it to 0, or train alone"
        )
    for index, loss in zip(batch["prompts"].unique_consecutive().tolist(), together, strict=True):
        _check_loss(model, names[index], _rows(batch, index), float(loss))
    model.eval()


def _losses(model: Any, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the losses in the shared batch, if there is such a thing."""
    try:
        return losses_apart(model, batch)[1]
    except UnsupportedError as error:
        if any(prompt.has("training_loss") for prompt in model.prompts.values()):
            raise UnsupportedError("it has a training loss of its own, which is made of batches of its own") from error
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
    """Take the rows of one prompt, without saying whose they are."""
    own = batch["prompts"] == index
    return {key: value[own] for key, value in batch.items() if key != "prompts"}


def _random_state(model: Any) -> Tensor:
    """Return the states of the generators that a step may draw from."""
    device = model.device
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return torch.cat(states)
