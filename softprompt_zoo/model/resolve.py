"""The prompts of one forward: built by their methods, or those that the text started with."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.model import context
from softprompt_zoo.model.lending import Lending, Ready
from softprompt_zoo.prompt.branch import PromptBranch
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.shapes import Int
from softprompt_zoo.sites.call import Call, DecodingState, Trace
from softprompt_zoo.sites.decoding_state import decoding_state_of, has_text
from softprompt_zoo.sites.prompts_argument import check_known
from softprompt_zoo.sites.request import Request
from softprompt_zoo.sites.selection import Part, Selection
from softprompt_zoo.sites.separate_parts import separate_tasks
from softprompt_zoo.sites.slots import check_second_text, take_slots
from softprompt_zoo.tokens.no_tokens import NoTokens
from softprompt_zoo.tokens.placement import Placement

BARE = Selection(((),), None)
"""No prompts in any row."""
NOTHING_YET = Placement(NoTokens())
"""Placeholder for a prompt until it has read the text."""


class _Gathered(NamedTuple):
    """What the prompts of a call do; all but the placements by their names."""

    placements: dict[Part, Placement]
    heads: dict[str, nn.ModuleDict]
    readers: dict[str, Any]
    maps: dict[str, Any]
    branches: dict[str, PromptBranch]


class PromptsOfModel(Protocol):
    """What this module needs from a model's prompts."""

    backbone: Backbone
    training: bool
    lending: Lending | None
    """Its bank, if it has one."""
    chosen: Selection
    """The prompts that rows see when a call names none."""
    is_watched: bool
    """Whether optimizers that train them are watched."""
    _modules: dict[str, nn.Module | None]
    era: object
    """Replaced by a change that texts in progress should follow."""

    def watch(self) -> None:
        """Watch optimizers that train them."""

    def keys(self) -> list[str]:
        """Return the names."""

    def __getitem__(self, name: str) -> Prompt:
        """Return a prompt."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the prompts' parameters."""


def resolve(prompts: PromptsOfModel, request: Request, cache: Any, rows: int | None = None) -> Call:
    """Build the prompts of one forward.

    Args:
        prompts: The model's prompts.
        request: What the forward was called with.
        cache: The cache that it was given, if any; a text in it continues with the prompts it started with.
        rows: Rows of the text, to check the request against; `None` if that was done.

    Returns:
        The call; its selection is empty if no row sees a prompt.

    Raises:
        UnknownPromptError: If a prompt is neither the model's nor its bank's.
        ValueError: If a task or a slot is out of range, or the number of rows differs.
        UnsupportedError: If `generate` runs the model on a second text of its own while slots are given.
    """
    is_compiling = torch.compiler.is_compiling()
    generation, decoding = (None, None) if is_compiling else _text_of(prompts, cache)
    if (is_compiling or context.DISABLED.get()) and context.is_disabled(prompts):
        return Call(BARE, {}, prompts.training, Trace(), decoding=decoding)
    if generation is not None:
        request = _filled(request, generation, prompts.backbone)
    if rows is not None:
        request = request.for_text(rows)
    call = _build(prompts, request, decoding, cache)
    if request.soft_slots is not None:
        call = _with_slots(call, request.soft_slots, generation is not None, cache)
    return call if call.selection.rows is None else _with_rows_on_device(call, call.selection.rows, prompts)


def _build(prompts: PromptsOfModel, request: Request, decoding: DecodingState | None, cache: Any) -> Call:
    """Place the prompts that rows see, whether they are the model's or its bank's."""
    selection = prompts.chosen
    lent = {} if prompts.lending is None else _borrow(prompts, prompts.lending, request, decoding, cache)
    if request.selection is not None:
        selection = request.selection
        _check_known(prompts, selection, lent)
    placements, heads, readers, maps, branches = _gather(prompts, selection, lent, decoding)
    share_softmax = True
    for placement in placements.values():
        share_softmax = share_softmax and placement.tokens.share_softmax
    if not share_softmax:  # some may have tasks
        selection, placements = separate_tasks(selection, placements, request.task_ids)
    return Call(
        selection,
        placements,
        prompts.training,
        Trace(),
        heads=heads_of(selection, heads) if heads else (),
        decoding=decoding,
        share_softmax=share_softmax,
        readers=readers,
        maps=maps,
        branches=branches,
        text_mask=request.text_mask,
    )


def _gather(
    prompts: PromptsOfModel, selection: Selection, lent: Mapping[str, Ready], decoding: DecodingState | None
) -> _Gathered:
    """Place the prompts of a selection, and collect what else they do."""
    found = _Gathered({}, {}, {}, {}, {})
    for combination in selection.combinations:
        for part in combination:
            if part in found.placements:
                continue
            source: Any = lent[part.name] if part.name in lent else prompts._modules[part.name]
            if part.name in lent:
                placement = source.placement
            elif source.beyond_tokens is None:
                placement = _place(prompts, part.name, source, decoding)
            else:
                placement = _place_beyond(prompts, part.name, source, decoding, found)
            found.placements[part] = placement
            if source.head is not None:
                found.heads[part.name] = source.head
    return found


def _filled(request: Request, generation: context.Generation, backbone: Backbone) -> Request:
    """Fill in what a forward leaves out from the `generate` that is running."""
    if request.soft_slots is None and generation.request.soft_slots is not None:
        check_second_text(backbone)
    return request.filled(generation.request)


def _with_slots(call: Call, index: Int[Tensor, "rows length"], in_generate: bool, cache: Any) -> Call:
    """Put the input-level prompts into the text rather than in front of it."""
    is_checked = in_generate and has_text(cache)
    selection, slots = take_slots(call.selection, call.placements, index, in_generate, is_checked)
    return dataclasses.replace(call, selection=selection, slots=slots)


def _with_rows_on_device(call: Call, rows: Int[Tensor, " rows"], prompts: PromptsOfModel) -> Call:
    device = next((parameter.device for parameter in prompts.parameters()), prompts.backbone.device)
    return dataclasses.replace(call, selection=Selection(call.selection.combinations, rows.to(device)))


def heads_of(selection: Selection, heads: Mapping[str, nn.ModuleDict]) -> list[nn.ModuleDict | None]:
    """Find the head of each combination: that of its last prompt with a head.

    Args:
        selection: The combinations.
        heads: Trained task heads by prompt name, of the prompts that have one.

    Returns:
        A head for each combination, `None` for the model's own; empty if all use that.
    """
    found: list[nn.ModuleDict | None] = []
    for combination in selection.combinations:
        found.append(None)
        for part in combination:
            found[-1] = heads.get(part.name, found[-1])
    return found


def active_heads(prompts: PromptsOfModel) -> list[nn.ModuleDict | None]:
    """Return the trained task heads of the active prompts, for a forward that takes no request."""
    if context.is_disabled(prompts):
        return []
    heads = {part.name: prompts[part.name].head for part in prompts.chosen.parts}
    return heads_of(prompts.chosen, {name: head for name, head in heads.items() if head is not None})


def check_request(prompts: PromptsOfModel, request: Request) -> None:
    """Refuse prompts that neither the model nor its bank has.

    Args:
        prompts: The model's prompts.
        request: What a `generate` was called with.

    Raises:
        UnknownPromptError: If neither has one.
    """
    if request.selection is not None:
        lent = {} if prompts.lending is None else _borrow(prompts, prompts.lending, request, DecodingState(None), None)
        _check_known(prompts, request.selection, lent)


def _check_known(prompts: PromptsOfModel, selection: Selection, lent: Mapping[str, Ready]) -> None:
    check_known(selection, prompts.keys(), lent, None if prompts.lending is None else prompts.lending.address)


def _borrow(
    prompts: PromptsOfModel, lending: Lending, request: Request, decoding: DecodingState | None, cache: Any
) -> Mapping[str, Ready]:
    named: Sequence[str] = () if request.selection is None else request.selection.names
    there = prompts.keys()
    wanted = [name for name in named if name not in there]
    held = None if decoding is None else decoding.lent
    return lending.borrow(wanted, prompts.backbone, held, decoding is not None or has_text(cache))


def _text_of(prompts: PromptsOfModel, cache: Any) -> tuple[context.Generation | None, DecodingState]:
    """Return the running `generate`, if any, and the state its text continues with; compiled forwards rebuild all."""
    if not prompts.is_watched:
        prompts.watch()
    generation = None if context.CURRENT.get() is None else context.running(prompts)
    found = None if generation is None else generation.decoding
    if found is None and cache is not None:
        found = decoding_state_of(cache)
    found = DecodingState(prompts.era) if found is None else found.renew(prompts.era)
    if generation is not None:
        generation.decoding = found
    return generation, found


def _place_beyond(
    prompts: PromptsOfModel, name: str, prompt: Prompt, decoding: DecodingState | None, found: _Gathered
) -> Placement:
    """Record what a prompt does to the rows' text and attention output; return what can already be placed."""
    beyond = prompt.beyond_tokens
    if beyond is not None and beyond.attends:
        found.branches[name] = PromptBranch(prompt, prompts.backbone)
    if beyond is not None and beyond.maps_text:
        found.maps[name] = functools.partial(prompt.map_text, prompts.backbone)
    if beyond is None or not beyond.reads_text:
        return _place(prompts, name, prompt, decoding)
    found.readers[name] = functools.partial(prompt.place_rows, prompts.backbone)
    return NOTHING_YET


def _place(prompts: PromptsOfModel, name: str, prompt: Prompt, decoding: DecodingState | None) -> Placement:
    if decoding is None or torch.is_grad_enabled() or prompts.training:
        return prompt.placed(prompts.backbone, None)
    if name not in decoding.placements:
        decoding.placements[name] = prompt.placed(prompts.backbone, None)
    return decoding.placements[name]
