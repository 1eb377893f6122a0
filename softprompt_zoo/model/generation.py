"""`generate` on a prompted model: a prompt per row, beams, guidance, drafts by the model's own first layers."""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor

from softprompt_zoo.backbone.lookup import config_value
from softprompt_zoo.backbone.peft_layers import model_inside
from softprompt_zoo.backbone.traits import without_cache
from softprompt_zoo.errors import UnsupportedError
from softprompt_zoo.model.context import CURRENT, Generation, is_disabled, running
from softprompt_zoo.model.prompts import Prompts
from softprompt_zoo.model.resolve import check_request
from softprompt_zoo.shapes import Shaped
from softprompt_zoo.sites.decoding_state import decoding_state_of, has_text
from softprompt_zoo.sites.encoder_states import whole_outputs
from softprompt_zoo.sites.positions import given_cache
from softprompt_zoo.sites.reach.views import view
from softprompt_zoo.sites.request import NOTHING, REQUEST_KEYWORD, Request
from softprompt_zoo.sites.slots import check_second_text
from softprompt_zoo.sites.soft_slots_argument import check_slots
from softprompt_zoo.sites.text_outputs import cut_states

if TYPE_CHECKING:  # the class in front of which it is mixed in
    from transformers import PreTrainedModel as OwnClass
else:
    OwnClass = object


class PromptedGeneration(OwnClass):
    """How a prompted model generates; mixed in front of the model's own class."""

    prompts: Prompts

    @torch.no_grad()
    def generate(
        self,
        *args: Any,
        prompts: Any = None,
        task_ids: Any = None,
        soft_slots: Any = None,
        text_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as the model's own class does, with a prompt for each row; the output has no virtual tokens."""
        asked = {"prompts": prompts, "task_ids": task_ids, "soft_slots": soft_slots, "text_mask": text_mask}
        text = self._text(args, kwargs)
        request, is_checked = self._read(asked, text, kwargs.get("encoder_outputs"))
        generation = Generation(self.prompts, request, is_checked, text_length=self._text_length(text))
        if kwargs.get("encoder_outputs") is not None:
            kwargs = self._with_whole_states(generation, kwargs)
        token = CURRENT.set(generation)
        try:
            output = super().generate(*args, **kwargs)
        finally:
            CURRENT.reset(token)
        return self._shown(output, generation)

    def _text(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the text to continue or to encode; `None` if there is none."""
        names = ("inputs", "input_ids", "inputs_embeds", self.main_input_name)
        return args[0] if args else next((kwargs[name] for name in names if kwargs.get(name) is not None), None)

    def _text_length(self, text: Any) -> int | None:
        """Return the length of the text, if a prompt may depend on it or change it; `None` if none does."""
        wants_to_know = any(prompt.beyond_tokens for prompt in self.prompts.values())
        if not self.prompts.backbone.kind.is_causal or not wants_to_know:
            return None
        return int(text.shape[1]) if isinstance(text, Tensor) else 1

    def _shown(self, output: Any, generation: Generation) -> Any:
        """Return an output without virtual positions, as the caller should see it."""
        layout = None if generation.decoding is None else generation.decoding.layout
        if layout is not None and self.prompts.backbone.kind.has_two_texts and isinstance(output, dict):
            return cut_states(output, layout)
        return output

    def _read(self, asked: dict[str, Any], text: Any, states: Any) -> tuple[Request, bool]:
        """Read what a `generate` asks for, and check it against its text or the states of one, if they are given.

        Args:
            asked: The arguments.
            text: The text, if there is one.
            states: The `encoder_outputs`, if there are any.

        Returns:
            The request, and whether it was checked; transformers decides how many rows start without a text.
        """
        request = Request.read(asked, self.prompts.keys())
        check_request(self.prompts, request)
        is_checked = True
        if isinstance(text, Tensor):
            request = request.for_generate(*text.shape[:2])
        elif states is not None:
            request = request.for_generate(states[0].shape[0], None)
        elif request.soft_slots is not None:
            check_slots(request.soft_slots, 0, 0)
        else:
            is_checked = False
        outer = running(self.prompts)  # for example, of a draft by the model's own first layers
        return (request if outer is None else request.filled(outer.request)), is_checked

    def _prepare_model_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the text as the model's own class does, and check the request against one that starts here."""
        prepared = super()._prepare_model_inputs(*args, **kwargs)
        generation = running(self.prompts)
        if generation is not None and not generation.is_checked:
            generation.request, generation.is_checked = generation.request.for_generate(len(prepared[0]), None), True
        return prepared

    def _with_whole_states(self, generation: Generation, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Put virtual positions back into encoder states given by the user: beams and steps copy them."""
        call = self.prompts.resolve(generation.request, None)
        outputs, mask = kwargs["encoder_outputs"], kwargs.get("attention_mask")
        call = call.for_batch(outputs[0].shape[0])
        outputs, mask, layout = whole_outputs(outputs, mask, call)
        if call.decoding is not None:
            call.decoding.layout = layout
            generation.decoding = call.decoding
        return {**kwargs, "encoder_outputs": outputs} | ({} if mask is None else {"attention_mask": mask})

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Prepare a step as the model's own class does, and pass on what `generate` was asked for."""
        cache = given_cache(kwargs)
        own: Any = super(PromptedGeneration, self._counting_prompts(cache))
        inputs: dict[str, Any] = own.prepare_inputs_for_generation(*args, **kwargs)
        if cache is not None and given_cache(inputs) is None and kwargs.get("next_sequence_length"):
            # The model has dropped its cache, so it needs the whole text, which some versions of transformers withhold.
            kwargs = {**without_cache(kwargs), "next_sequence_length": None}
            inputs = own.prepare_inputs_for_generation(*args, **kwargs)
        generation = running(self.prompts)
        if generation is not None:
            self._keep_mask(inputs, kwargs.get("attention_mask"))
            _hand_on(_with_text_mask(generation, kwargs.get("attention_mask"), inputs), inputs)
        return inputs

    def _keep_mask(self, inputs: dict[str, Any], mask: Any) -> None:
        """Restore the 2-D mask: the 4-D one for static caches lacks cached prompts and cannot count the text."""
        is_plain = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        backbone = self.prompts.backbone
        is_counted = backbone.kind.is_causal and "position_ids" not in inputs
        if is_plain and (backbone.through_cache or is_counted):
            inputs["attention_mask"] = mask

    def _counting_prompts(self, cache: Any) -> Any:
        """Return the model as its rule for dropping the cache must see it: virtual tokens take up positions, too.

        Such a model rotates long texts differently, and so recomputes a text when it becomes long.
        """
        generation = running(self.prompts)
        state = None if generation is None else generation.decoding or decoding_state_of(cache)
        limit = config_value(self.config, "original_max_position_embeddings")
        if state is None or not state.ahead or not isinstance(limit, int):
            return self
        config = copy.copy(self.config)
        config.original_max_position_embeddings = limit - state.ahead
        return view(self, config=config)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        processors = super()._get_logits_processor(*args, **kwargs)
        return LogitsProcessorList([self._guided_without_prompts(processor) for processor in processors])

    def _guided_without_prompts(self, processor: Any) -> Any:
        """Return a processor whose unconditional branch runs this model without its prompts; others stay unchanged."""
        is_guidance = isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor)
        if not is_guidance or model_inside(processor.model) is not self:
            return processor
        processor = copy.copy(processor)  # it may be the user's own
        processor.model = functools.partial(self._run_unconditional, processor.model)
        return processor

    def _run_unconditional(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        generation = running(self.prompts)
        if generation is not None and generation.request.soft_slots is not None and not is_disabled(self.prompts):
            check_second_text(self.prompts.backbone)
        with self.prompts.disabled():
            return model(*args, **kwargs)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        generator = super()._get_candidate_generator(*args, **kwargs)
        generator.get_candidates = functools.partial(_get_candidates, generator.get_candidates, self)
        return generator

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching, which keeps the texts of all requests in one row."""
        raise UnsupportedError(
            "continuous batching (generate_batch, cache_implementation='paged') keeps the texts of all requests in one "
            "row and one cache, where a prompt cannot tell which of them it belongs to; call generate, which takes "
            "a prompt for every row, or write the prompt as a checkpoint with special tokens, "
            'zoo.export(model, folder, to="vocabulary", tokenizer=tokenizer), and batch the model loaded from there'
        )


def _with_text_mask(generation: Generation, mask: Any, inputs: dict[str, Any]) -> Request:
    """Return the request, with a mask of the text at its first step, which may also hold a draft of what follows.

    Args:
        generation: The `generate` that runs.
        mask: The attention mask of the step, as `generate` counts it, or `None`.
        inputs: The arguments of the step.

    Raises:
        UnsupportedError: If the text is read in chunks.
    """
    request, length = generation.request, generation.text_length
    if length is None or generation.decoding is not None or request.text_mask is not None:
        return request
    rows, columns = _text_of(inputs).shape[:2]
    if columns < length and given_cache(inputs) is not None and not has_text(given_cache(inputs)):
        raise UnsupportedError(
            f"the text of {length} tokens is read in chunks of {columns}, but a prompt of this model depends on all of "
            "it; leave prefill_chunk_size out, or remove that prompt"
        )
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        mask = _text_of(inputs).new_ones(rows, columns, dtype=torch.long)
    later = torch.arange(mask.shape[1], device=mask.device) >= length
    return dataclasses.replace(request, text_mask=mask.masked_fill(later, 0)[:, -columns:])


def _text_of(inputs: Mapping[str, Any]) -> Shaped[Tensor, "rows length ..."]:
    """Return the text that a step reads: the decoder's, if there are two."""
    names = ("decoder_input_ids", "input_ids", "inputs_embeds")
    text: Tensor = next(inputs[name] for name in names if inputs.get(name) is not None)
    return text


def _hand_on(request: Request, inputs: dict[str, Any]) -> None:
    """Add a request, repeated for beams, to the arguments of a step: a compiled forward cannot see the context."""
    if request is not NOTHING:
        inputs[REQUEST_KEYWORD] = request.repeated(_text_of(inputs).shape[0])


def _get_candidates(get_candidates: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Draft candidates; the model has all its layers afterwards, even if the draft fails.

    For a draft that exits early, transformers changes the number of layers in the config.
    """
    config = model.base_model.config
    depth = config_value(config, "num_hidden_layers")
    try:
        return get_candidates(*args, **kwargs)
    finally:
        if config_value(config, "num_hidden_layers") != depth:
            config.num_hidden_layers = depth
