"""Which trainings can share their batches: what is refused, before a step is taken, is to be trained alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.training.settings import Settings
from softprompt_zoo.training.together.losses import losses_apart

OWN = ("learning_rate", "seed", "options", "output")
"""Settings in which trainings that share their batches may differ."""
TOLERANCES = {torch.float32: 1e-4}
"""Of a loss alone and together, relative, by the model's number format."""
HALF_PRECISION = 0.05
"""The same where sums are rounded to eight or eleven bits; it is there to find other losses, not to measure."""


def check_alike(runs: Mapping[str, Settings]) -> None:
    """Refuse trainings that differ in more than what each has of its own.

    Args:
        runs: The trainings by name.

    Raises:
        ValueError: If there is none, or a setting differs that has to be the same.
    """
    if not runs:
        raise ValueError("there is nothing to train together; give at least one training")
    (first, shared), *others = runs.items()
    for name, settings in others:
        for field in dataclasses.fields(Settings):
            here, there = vars(settings)[field.name], vars(shared)[field.name]
            if field.name not in OWN and here != there:
                raise ValueError(
                    f"{first} and {name} cannot be trained together: their {field.name.replace('_', ' ')} is {there!r} "
                    f"and {here!r}; only {', '.join(OWN[:-1])} may differ"
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
    together = losses_apart(model, batch)
    if not torch.equal(before, _random_state(model)):
        raise UnsupportedError(
            "a training step draws random numbers, of a dropout say, and would draw others together than alone; set "
            "it to 0, or train alone"
        )
    for index, loss in zip(batch["prompts"].unique_consecutive().tolist(), together, strict=True):
        _check_loss(model, names[index], _rows(batch, index), float(loss))
    model.eval()


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
