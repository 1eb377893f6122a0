"""How much of a text's attention goes to prompts, by layer and token, measured on a batch."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.backbone.eval_mode import eval_mode
from softprompt_zoo.backbone.families import Family
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.operations.attention_batches import Batch, arguments_of, read_batches, text_name, text_queries
from softprompt_zoo.shapes import Float
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.reach.attention_recording import RECORDED_PREFIX, Columns, recording
from softprompt_zoo.sites.request import Request
from softprompt_zoo.sites.selection import Part
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.tokens.virtual_tokens import VirtualTokens
from softprompt_zoo.trial.twin import twin


@dataclasses.dataclass(frozen=True)
class AttentionMass:
    """The share of the text's attention that goes to one prompt: means over heads, rows and the text's tokens."""

    shares: Mapping[str, Float[Tensor, " layers"]]
    """By site, each in [0, 1]; the rest goes to the text and to other prompts."""
    tokens: Mapping[str, Float[Tensor, "layers tokens"]]
    """By site; they add up to `shares`. Empty if a model shows only sums."""


@torch.no_grad()
def measure_attention(
    model: PreTrainedModel, names: Sequence[str], inputs: Batch | Sequence[Batch], task: int | None = None
) -> dict[str, AttentionMass]:
    """Measure the attention to prompts that a model sees together. The model is not changed, so others may use it.

    Args:
        model: A prompted model.
        names: Names of its prompts, in order.
        inputs: A batch as the model's forward takes it, with or without padding; or several such batches.
        task: The task of all rows, for prompts that have tasks.

    Returns:
        The share of attention by prompt name. Gated prompts take none of the text's, and have no sites.

    Raises:
        TypeError: If `inputs` is neither a batch nor a list of batches.
        ValueError: If a batch chooses prompts itself, or lacks what the model reads.
        UnsupportedError: If the prompts are disabled, or the model does not show its attention.
    """
    batches = read_batches(inputs)
    prompts: Any = model.prompts
    backbone: Backbone = prompts.backbone
    ids = None if task is None else torch.tensor([task])
    call: Call = prompts.resolve(Request.read({"prompts": [list(names)], "task_ids": ids}, prompts.keys()), None)
    _check_enabled(call, names)
    measured_on = twin(model)
    stacks: Mapping[str, Stack] = measured_on._softprompt_stacks
    measure = _columns if all(stack.reach.shows_columns for stack in stacks.values()) else _sums
    measured = []
    for batch in batches:
        arguments = arguments_of(batch, backbone)
        measured.append(measure(measured_on, call, _with_prompts(arguments, names, task, backbone), stacks))
    return _mean(measured, dict(zip(names, call.selection.combinations[0], strict=True)))


def _check_enabled(call: Call, names: Sequence[str]) -> None:
    if not call.selection.names:
        inactive = ", ".join(map(repr, names))
        raise UnsupportedError(
            f"the prompts are disabled here ({inactive}), so nothing attends to them; leave prompts.disabled()"
        )


_Measured = dict[str, tuple[int, dict[Part, Tensor]]]
"""By site: how many tokens of text were measured, and the attention they gave by prompt, `(layers, tokens)` or less."""


def _columns(model: Any, call: Call, arguments: dict[str, Any], stacks: Mapping[str, Stack]) -> _Measured:
    """Read the weights of every column of the prompts."""
    backbone: Backbone = model.prompts.backbone
    columns = {site: _order(call, site, backbone.kind) for site in backbone.layers}
    asked = _asked(call, columns, arguments, backbone)
    modules = [stack.module for stack in stacks.values()]
    with eval_mode(modules, RECORDED_PREFIX), recording(asked) as found:
        model(**arguments)
    shares = found.shares(_gated_layers(call))
    return {
        site: (
            int(asked[site].is_text.sum()),
            dict(zip(columns[site], shares[site].split(list(columns[site].values()), dim=1), strict=True)),
        )
        for site in shares
    }


def _asked(
    call: Call, columns: Mapping[str, Mapping[Part, int]], arguments: Mapping[str, Any], backbone: Backbone
) -> dict[str, Columns]:
    """Return which columns and queries are measured, by site; none if there is no prompt or no text."""
    asked = {}
    for site, counts in columns.items():
        first_query = sum(_input_counts(call).values()) if site == "encoder" else 0
        is_text = text_queries(arguments, site, backbone, moved=first_query > 0)
        if counts and is_text is not None:
            asked[site] = Columns(sum(counts.values()), first_query, is_text)
    return asked


def _sums(model: Any, call: Call, arguments: dict[str, Any], stacks: Mapping[str, Stack]) -> _Measured:
    """Take what the text's weights lack to add up to one, if the prompts' columns are not shown."""
    backbone: Backbone = model.prompts.backbone
    [site] = backbone.layers
    prompt = _only_prompt(call, _order(call, site, backbone.kind), model)
    weights = _weights(model, arguments, stacks)
    is_text = text_queries(arguments, site, backbone, moved=False)
    assert is_text is not None
    parts = [1 - layer.float().sum(dim=-1).mean(dim=1)[is_text].mean() for layer in weights]
    return {site: (int(is_text.sum()), {prompt: torch.stack(parts)})}


def _weights(
    model: Any, arguments: dict[str, Any], stacks: Mapping[str, Stack]
) -> Sequence[Float[Tensor, "rows heads queries _"]]:
    """Return the attention weights of each layer."""
    with eval_mode([stack.module for stack in stacks.values()], "eager"):
        weights: Sequence[Tensor] = model(**arguments, output_attentions=True).attentions
    if not weights or any(layer is None for layer in weights):
        raise UnsupportedError(f"{type(model).__name__} returns no attention weights; leave inputs out")
    return weights


def _only_prompt(call: Call, counts: Mapping[Part, int], model: Any) -> Part:
    """Return the one prompt whose columns the text sees."""
    if len(counts) != 1:
        problem = "takes none of the text's attention" if not counts else "cannot be told apart here"
        raise UnsupportedError(
            f"{', '.join(map(repr, call.selection.names))}: {problem} in {type(model).__name__}, which returns "
            "only the text's weights; inspect one ungated prompt by its name"
        )
    return next(iter(counts))


def _order(call: Call, site: str, family: Family) -> dict[Part, int]:
    """Return the prompts that have columns at a site, in order, with the number of their columns."""
    if family.is_causal:
        counts = _counted(call, lambda tokens: tokens.columns(site))
    else:
        counts = _counted(call, lambda tokens: tokens.length(site))
        if site != "decoder":  # real positions, after all keys and values
            counts |= _input_counts(call)
    return counts


def _input_counts(call: Call) -> dict[Part, int]:
    return _counted(call, lambda tokens: 0 if tokens.at_input is None else tokens.count)


def _counted(call: Call, count: Callable[[VirtualTokens], int]) -> dict[Part, int]:
    """Count something for each prompt of the only combination; those without any are left out."""
    counts = {name: count(call.placements[name].tokens) for name in call.selection.combinations[0]}
    return {name: number for name, number in counts.items() if number}


def _gated_layers(call: Call) -> dict[AttentionLayer, int]:
    """Count the gated prompts of every layer."""
    found: Counter[AttentionLayer] = Counter()
    for placement in call.placements.values():
        for site, gates in placement.tokens.gates.items():
            found.update(AttentionLayer(site, layer) for layer, gate in enumerate(gates) if gate is not None)
    return found


def _mean(measured: Sequence[_Measured], parts: Mapping[str, Part]) -> dict[str, AttentionMass]:
    """Average over batches; each token of text counts once."""
    return {name: _mean_of(part, measured) for name, part in parts.items()}


def _mean_of(part: Part, measured: Sequence[_Measured]) -> AttentionMass:
    shares, tokens = {}, {}
    for site in measured[0]:
        mean = _mean_at(site, part, measured)
        if mean is None:
            continue
        shares[site] = mean
        if mean.ndim == 2:
            shares[site], tokens[site] = mean.sum(dim=1), mean
    return AttentionMass(shares, tokens)


def _mean_at(site: str, part: Part, measured: Sequence[_Measured]) -> Float[Tensor, "layers ..."] | None:
    given = [batch[site] for batch in measured if part in batch[site][1]]
    total = sum(count for count, _ in given)
    if total == 0:
        return None
    return torch.stack([count * own[part] for count, own in given if count]).sum(dim=0) / total


def _with_prompts(
    arguments: dict[str, Any], names: Sequence[str], task: int | None, backbone: Backbone
) -> dict[str, Any]:
    """Choose the prompts, and the task, for all rows of a forward's arguments."""
    rows = arguments[text_name(arguments)].shape[0]
    chosen: dict[str, Any] = {"prompts": [list(names)] * rows}
    if task is not None:
        chosen["task_ids"] = torch.tensor([task] * rows, device=backbone.device)
    return arguments | chosen
