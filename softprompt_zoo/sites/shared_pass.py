"""Input-level prompts before the text of a causal model: one pass over only the virtual tokens.

Virtual tokens see only what is before them, so their keys and values are the same for every row: one
row per distinct combination is computed, and the batch never pays for the prompt.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt_zoo.backbone.eval_mode import switched_off
from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.backbone.probe import STATE_KEYWORD
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.shapes import Float, Int
from softprompt_zoo.sites.batch import join, lengths, site_state
from softprompt_zoo.sites.call import Call, Prefix, Segment, per_token
from softprompt_zoo.sites.position_table import check_budget, shift_to
from softprompt_zoo.sites.selection import Combination, Part
from softprompt_zoo.sites.site import AttentionLayer
from softprompt_zoo.sites.stack import Stack
from softprompt_zoo.sites.state import CallState, KeyValueRecording


@dataclasses.dataclass
class _Pending:
    """Input-level tokens that still have to pass through the model."""

    embeddings: Float[Tensor, "tokens hidden"]
    dropout: list[float]
    always_visible: list[bool]
    weight: list[float]
    owners: list[Part]
    """The prompt that each token belongs to."""

    @property
    def goes_on(self) -> bool:
        """Whether later tokens may be in the same run: they see it like the text does if its last weight is one."""
        return self.weight[-1] == 1.0

    def __add__(self, other: "_Pending") -> "_Pending":
        return _Pending(
            torch.cat([self.embeddings, other.embeddings]),
            self.dropout + other.dropout,
            self.always_visible + other.always_visible,
            self.weight + other.weight,
            self.owners + other.owners,
        )


def causal_prefix(stack: Stack, call: Call, reach: Int[Tensor, ""] | None = None) -> Prefix:
    """Turn every combination into keys and values.

    Args:
        stack: A causal stack.
        call: The prompts of this forward.
        reach: The last position of the text after them, if the rotation of all positions depends on it.

    Returns:
        Keys and values per combination; gradients flow to the prompts.
    """
    queues = [_segments(stack, call, combination) for combination in call.selection.combinations]
    prefix = Prefix.of([None] * len(queues))
    while pending := _next_pending(prefix, queues):
        before = [prefix.segments[index] for index in pending]
        passed = _run(stack, [*pending.values()], before, call.is_training, reach)
        for (index, part), own in zip(pending.items(), passed, strict=True):
            _add_passed(prefix, index, part, *own)
    return prefix


def _next_pending(prefix: Prefix, queues: list[list[Any]]) -> dict[int, _Pending]:
    """Append the next keys and values of each combination to its prefix; return the tokens that follow."""
    pending: dict[int, _Pending] = {}
    for index, queue in enumerate(queues):
        while queue and isinstance(queue[0], Segment):
            prefix.segments[index], prefix.tails[index] = join(prefix.segments[index], queue.pop(0)), None
        if queue:
            pending[index] = queue.pop(0)
    return pending


def _add_passed(
    prefix: Prefix, index: int, part: _Pending, segment: Segment, states: Float[Tensor, "tokens hidden"]
) -> None:
    """Append the keys and values computed for input-level tokens to the prefix of their combination."""
    prefix.segments[index] = join(prefix.segments[index], segment)
    prefix.tails[index] = states[-1] if part.weight[-1] else None
    counts = Counter(part.owners)  # in the order of the prompts
    prefix.states[index].update(zip(counts, states.split([*counts.values()]), strict=True))


def record_keys_values(
    stack: Stack, inputs: dict[str, Any], prior: CallState | None = None
) -> tuple[Any, KeyValueRecording]:
    """Run a stack and record the keys and values of all its attention sites.

    Args:
        stack: Any stack.
        inputs: Its arguments.
        prior: Prompts that the pass sees.

    Returns:
        The stack's output, and the recorded keys and values.
    """
    recorded = KeyValueRecording(prior)
    inputs = stack.reach.enter(stack, recorded, inputs)
    # Recomputed layers would record tensors outside the graph.
    with switched_off(stack.module, "gradient_checkpointing"):
        output = stack.module(**inputs, **{STATE_KEYWORD: recorded})
    return output, recorded


def _segments(stack: Stack, call: Call, combination: Combination) -> list[Any]:
    """Split a combination into ready segments and runs of input-level tokens; a weighted prompt ends a run.

    Within a run, the tokens see each other unweighted; those after it see it by its weight, like the text.
    """
    segments: list[Any] = []
    for owner in combination:
        placement = call.placements[owner]
        embeddings = placement.tokens.at_input
        if embeddings is None:
            segments.append(Segment.of(placement, stack.name))
            continue
        count = embeddings.shape[0]
        part = _Pending(embeddings, *per_token(placement, count), [owner] * count)
        if segments and isinstance(segments[-1], _Pending) and segments[-1].goes_on:
            part = segments.pop() + part
        segments.append(part)
    return [*filter(None, segments)]


def _run(
    stack: Stack,
    pending: list[_Pending],
    before: list[Segment | None],
    is_training: bool,
    reach: Int[Tensor, ""] | None,
) -> list[tuple[Segment, Float[Tensor, "_ hidden"]]]:
    """Run the stack on tokens, each row after its existing prefix; return keys and values, and last states.

    Raises:
        UnsupportedError: If the tokens' states would differ for each row of the text.
    """
    _check_masks(pending, before)
    weight: Any = stack.embedding.weight
    embeddings = torch.nn.utils.rnn.pad_sequence([part.embeddings for part in pending], batch_first=True)
    embeddings = embeddings.to(device=weight.device, dtype=weight.dtype)
    longest = embeddings.shape[1]
    offsets = torch.tensor(lengths(before), device=embeddings.device)[:, None]
    positions = offsets + torch.arange(longest, device=embeddings.device)
    if reach is not None:  # an additional token, unseen by the others, makes the stack use the text's rotation
        embeddings = functional.pad(embeddings, (0, 0, 0, 1))
        positions = torch.cat([positions, reach.to(positions).expand(len(pending), 1)], dim=1)
    total = max(lengths(before)) + longest
    check_budget(stack, total, total)
    inputs = _inputs(stack, embeddings, positions, max(lengths(before)))
    with _with_all_layers(stack):
        output, recorded = record_keys_values(stack, inputs, _prior(stack, before, positions, is_training))
    sites = [AttentionLayer(stack.name, layer) for layer in range(len(stack.attentions[stack.name]))]
    return [_passed(row, part, sites, recorded, output.last_hidden_state) for row, part in enumerate(pending)]


def _check_masks(pending: list[_Pending], before: list[Segment | None]) -> None:
    """Refuse tokens computed once for all rows if each row sees different ones of the tokens before them."""
    for part, segment in zip(pending, before, strict=True):
        if segment is not None and segment.mask is not None:
            raise UnsupportedError(
                f"prompt {part.owners[0].name!r} is at the input embeddings, and the prompt before it has a mask, by "
                "which each row sees different tokens of that prompt; put it before the one with the mask"
            )


def _prior(
    stack: Stack, before: list[Segment | None], positions: Int[Tensor, "rows length"], is_training: bool
) -> CallState | None:
    """Return the prompts that the tokens see before them, separately for each row."""
    state = site_state(before, is_training)
    rows = torch.arange(len(before), device=positions.device)
    return None if state is None else CallState({stack.name: state}, rows, positions)


def _inputs(
    stack: Stack, embeddings: Float[Tensor, "rows length hidden"], positions: Int[Tensor, "rows length"], before: int
) -> dict[str, Any]:
    """Return the stack's arguments for tokens at these positions, after `before` others."""
    inputs: dict[str, Any] = {"inputs_embeds": embeddings, "use_cache": False}
    if stack.takes_position_ids:
        inputs["position_ids"] = positions + stack.position_start
    elif stack.position_table is not None:
        inputs["inputs_embeds"] = shift_to(stack, embeddings, stack.reach.counted(0, before), positions)
    return inputs


def _passed(
    row: int,
    part: _Pending,
    sites: list[AttentionLayer],
    recorded: KeyValueRecording,
    states: Float[Tensor, "combinations positions hidden"],
) -> tuple[Segment, Float[Tensor, "tokens hidden"]]:
    """Extract one row's own tokens from the recording, which is padded to the longest."""
    count = len(part.dropout)
    keys = [recorded.keys[site][row, :, :count] for site in sites]
    values = [recorded.values[site][row, :, :count] for site in sites]
    return Segment(keys, values, part.dropout, part.always_visible, part.weight), states[row, :count]


@contextlib.contextmanager
def _with_all_layers(stack: Stack) -> Iterator[None]:
    """Run all layers of a stack of which `generate` only runs the first for a draft: the rest need the tokens too."""
    config, depth = stack.module.config, len(stack.attentions[stack.name])
    chosen = config_value(config, "num_hidden_layers")
    if chosen is None or chosen >= depth:
        yield
        return
    config.num_hidden_layers = depth
    try:
        yield
    finally:
        config.num_hidden_layers = chosen
