"""Methods' losses that replace the model's own, and the additional runs of the frozen model for them."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.eval_mode import switched_off
from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.errors import PluginError, UnsupportedError
from softprompt_zoo.exchange import TrainingStep
from softprompt_zoo.model.head_per_row import with_heads
from softprompt_zoo.model.language_head import predict
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.shapes import Float
from softprompt_zoo.sites.call import Call, Prefix, Trace
from softprompt_zoo.sites.selection import Part, Selection
from softprompt_zoo.tokens.kinds import narrowed
from softprompt_zoo.tokens.placement import Placement
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens

Run = Callable[[Call, dict[str, Any]], Any]


def learners(prompts: Prompts, call: Call, kwargs: dict[str, Any]) -> list[str]:
    """Find the prompts of a call that their method trains with its own loss.

    Without labels there is no loss to replace. A loss that the caller then computes from the logits is not the
    method's; if gradients are enabled, a warning says so: Trainer withholds the labels when it smooths them.

    Args:
        prompts: The model's prompts.
        call: The prompts of this forward.
        kwargs: The forward's arguments.

    Returns:
        Their names, in order; empty without labels.
    """
    found = _with_own_loss(prompts, call)
    if kwargs.get("labels") is not None:
        return found
    if found and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        warnings.warn(
            f"prompt {found[0]!r} ({prompts[found[0]].method}) has its own training loss, which this forward "
            "leaves out because it was given no labels; pass the labels and use output.loss. Trainer withholds them "
            "if it smooths labels or has a compute_loss_func",
            stacklevel=2,
        )
    return []


def _with_own_loss(prompts: Prompts, call: Call) -> list[str]:
    found: list[str] = []
    for part in call.placements:  # a comprehension could not be compiled here
        is_own = part.name in prompts  # a bank's are not trained
        if is_own and part.name not in found and _has_loss(prompts[part.name]):
            found.append(part.name)
    return found


def _has_loss(prompt: Prompt) -> bool:
    if prompt.is_merged or not prompt.config.replaces_loss or not prompt.has("training_loss"):
        return False
    # A frozen one must not change the loss of what is trained alongside it.
    return any([parameter.requires_grad for parameter in prompt.learned.parameters()])


@torch.compiler.disable
def replace_loss(model: Any, names: list[str], call: Call, inputs: dict[str, Any], output: Any, run: Run) -> Any:
    """Let methods replace the loss, one after the other.

    Args:
        model: The prompted model.
        names: From `learners`.
        call: The prompts of this forward.
        inputs: What the user gave the forward.
        output: What the model returned, with hidden states.
        run: Runs the model with other prompts.

    Returns:
        The output with the new loss, without hidden states that the user did not ask for.

    Raises:
        PluginError: If a method's loss is not a scalar.
        UnsupportedError: If a row lacks such a prompt.
    """
    task_ids = inputs.pop("task_ids", None)
    for name in names:
        step = TrainingStep(
            loss=output.loss,
            output=output,
            inputs=inputs,
            task_ids=task_ids,
            virtual_logits=lambda name=name: _virtual_logits(model, call, name),  # type: ignore[misc]
            first_logits=lambda name=name: _first_logits(model, call, name),  # type: ignore[misc]
            predicts_next=model.prompts.backbone.kind.is_causal and model.get_output_embeddings() is not None,
            run=lambda tokens, name=name, **changes: _run_again(model, call, name, tokens, {**inputs, **changes}, run),
        )
        loss = _loss_of(model.prompts[name], model.prompts.backbone, step)
        if loss is not None:
            _check_rows(model, call, name)
            output.loss = loss
    if not _wants_hidden_states(model, inputs):
        _drop_hidden_states(output)
    return output


def _loss_of(prompt: Prompt, backbone: Backbone, step: TrainingStep) -> Float[Tensor, ""] | None:
    """Return the loss of a prompt's method; `None` if it belongs to an option that is off."""
    loss = prompt.call("training_loss", backbone=backbone, step=step)
    source = prompt.loaded.describe("training_loss")
    if loss is not None and not (isinstance(loss, Tensor) and not loss.ndim):
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise PluginError(f"{source} returned {found}; expected a scalar tensor, or None for the model's loss")
    if loss is not None and torch.is_grad_enabled() and not loss.requires_grad:
        raise PluginError(f"{source} returned a loss that does not require grad; compute it without detach")
    return loss


def _drop_hidden_states(output: Any) -> None:
    for field in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        if output.get(field) is not None:
            output[field] = None


def _check_rows(model: Any, call: Call, name: str) -> None:
    combinations = call.selection.combinations
    if call.slots is None and not all(any(part.name == name for part in c) for c in combinations):
        method = model.prompts[name].method
        raise UnsupportedError(
            f"prompt {name!r} has its own training loss ({method}), and not every row of the batch has the "
            "prompt; train it in batches where all rows do"
        )


def _wants_hidden_states(model: Any, inputs: dict[str, Any]) -> bool:
    given = inputs.get("output_hidden_states")
    return bool(config_value(model.config, "output_hidden_states", False) if given is None else given)


def _virtual_logits(model: Any, call: Call, name: str) -> Float[Tensor, "tokens vocab"]:
    states = _only_prefix(call, name).states[0]
    return predict(_with_own_head(model, name), next(states[part] for part in states if part.name == name))


def _first_logits(model: Any, call: Call, name: str) -> Float[Tensor, " vocab"] | None:
    [tail] = _only_prefix(call, name).tails
    return None if tail is None else predict(_with_own_head(model, name), tail)


def _with_own_head(model: Any, name: str) -> Any:
    """Return the model with the prompt's own trained head, if it has one."""
    return with_heads(model, [model.prompts[name].head], None)


def _only_prefix(call: Call, name: str) -> Prefix:
    """Return what all rows have in front of their text, including the prompt's input-level tokens."""
    prefix = call.trace.prefix
    if prefix is None or len(prefix.states) != 1 or not any(part.name == name for part in prefix.states[0]):
        raise UnsupportedError(
            f"the loss of prompt {name!r} needs what the model predicts at its virtual tokens: they must be at the "
            "input embeddings in front of a causal model's text, the same in every row"
        )
    return prefix


@torch.no_grad()
def _run_again(
    model: Any, call: Call, name: str, tokens: VirtualTokens | None, inputs: dict[str, Any], run: Run
) -> Any:
    _check_rows(model, call, name)
    if call.slots is not None:
        raise UnsupportedError(f"the loss of prompt {name!r} runs the model with other tokens, which slots cannot hold")
    if tokens is None:  # a teacher without the prompt, which also uses the model's own task head
        own = model.prompts[name].head
        heads = [None if head is own else head for head in call.heads]
        again = _with_placements(call, _replaced(call, name, None), heads)
    else:
        again = _with_placements(call, _replaced(call, name, narrowed(tokens)), call.heads)
    with switched_off(model, "training"):
        return run(again, {**inputs, "return_dict": True, "output_hidden_states": True})


def _with_placements(call: Call, placements: dict[Part, Placement], heads: Sequence[nn.ModuleDict | None]) -> Call:
    """Return a call for the same rows, with those of their prompts that are placed."""
    combinations = [tuple([part for part in parts if part in placements]) for parts in call.selection.combinations]
    selection = Selection(tuple(combinations), call.selection.rows)
    names = selection.names
    return Call(
        selection,
        placements,
        False,
        Trace(),
        heads=heads,
        branches={name: branch for name, branch in call.branches.items() if name in names},
        readers={name: reader for name, reader in call.readers.items() if name in names},
        maps={name: change for name, change in call.maps.items() if name in names},
        text_mask=call.text_mask,
    )


def _replaced(call: Call, name: str, tokens: VirtualTokens | None) -> dict[Part, Placement]:
    """Return what is placed, with one prompt's tokens replaced or left out."""
    placements: dict[Part, Placement] = {}
    for part in call.selection.parts:
        if part.name != name:
            placements[part] = call.placements[part]
        elif tokens is not None:
            is_pooled = call.placements[part].is_pooled
            own = _of_task(tokens, part.task_or_row)  # a task: rows are separated later, in the stack
            placements[part] = dataclasses.replace(Placement(own), is_pooled=is_pooled)
    return placements


def _of_task(tokens: VirtualTokens, task: int | None) -> VirtualTokens:
    return tokens if task is None else tokens.task(task)
