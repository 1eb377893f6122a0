"""A prompted tiny model and the texts that it is tried on."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from softprompt_zoo.backbone.traits import cache_argument
from softprompt_zoo.method import get_method
from softprompt_zoo.model.attachment import detach
from softprompt_zoo.operations.load_and_export import load, merge
from softprompt_zoo.testing.models import tiny_model
from softprompt_zoo.testing.sizes import VOCABULARY

LENGTHS = (9, 4, 7)
"""Text lengths of the rows of a batch; the longest exceeds the tiny models' sliding window."""
DECODER_LENGTH = 8


def random_text(length: int, seed: int) -> Tensor:
    """Draw a text of `length` token ids without special ones, `(1, length)`."""
    return torch.randint(3, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def pad(texts: list[Tensor], side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Pad texts to one length.

    Args:
        texts: Token ids `(1, length)` each.
        side: `"left"` or `"right"`.
        extra: More padding than needed.

    Returns:
        Token ids and attention mask, `(rows, longest + extra)`.
    """
    longest = max(text.shape[1] for text in texts) + extra
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        length = text.shape[1]
        place = slice(longest - length, None) if side == "left" else slice(0, length)
        ids[row, place] = text[0]
        mask[row, place] = 1
    return ids, mask


@dataclasses.dataclass
class Subject:
    """A tiny model, prompted or not, and how to run it."""

    architecture: str
    model: Any

    @classmethod
    def prompted(
        cls, architecture: str, method: str, options: Mapping[str, Any], implementation: str = "sdpa", task: str = ""
    ) -> Self:
        """Attach a method to a tiny model and move its parameters away from their initial values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100)
            model = tiny_model(architecture, implementation=implementation, task=task)
            subject = cls(architecture, cls.attached(model, method, options))
            for name in subject.model.prompts:
                subject.disturb(name)
        return subject

    @classmethod
    def attached(cls, model: Any, method: str, options: Mapping[str, Any]) -> Any:
        """Attach the subject's prompts to a model, and return it."""
        return get_method(method)(model, **options)

    def disturb(self, name: str, scale: float = 0.1) -> None:
        """Add noise to a prompt's parameters."""
        with torch.no_grad():
            for parameter in self.model.prompts[name].parameters():
                parameter.add_(scale * torch.randn_like(parameter))

    @property
    def is_prompted(self) -> bool:
        """Whether it has prompts."""
        return hasattr(self.model, "prompts")

    @property
    def counts_padding(self) -> bool:
        """Whether it counts padding as text without `position_ids`, as base models do."""
        return not self.is_prompted

    @property
    def cache_argument(self) -> str:
        """Name of its argument for a cache; empty if there is none."""
        return cache_argument(type(self.model).forward)

    @property
    def shows_attentions(self) -> bool:
        """Whether it returns attention weights; outside the attention interface they may have a different form."""
        return bool(self.model.prompts.backbone.layers)

    def add_longer(self, method: str, options: Mapping[str, Any]) -> None:
        """Add a second prompt, named `"longer"`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            self.model.prompts.add("longer", method, **options)
            self.disturb("longer")

    def is_prompt_parameter(self, name: str) -> bool:
        """Return whether a name in the model's `state_dict` belongs to a prompt."""
        return name.startswith("prompts.")

    def state(self, of_prompt: bool) -> dict[str, Tensor]:
        """Return a copy of the state of the prompts, or of the model under them."""
        items = self.model.state_dict().items()
        return {name: value.clone() for name, value in items if self.is_prompt_parameter(name) == of_prompt}

    def trained_head(self) -> dict[str, Any]:
        """Return the state of each part of the task head that is trained with the prompt; empty if none is."""
        return {name: part.state_dict() for name, part in (self.model.prompts["default"].head or {}).items()}

    def disabled(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the prompts are disabled."""
        context: contextlib.AbstractContextManager[Any] = self.model.prompts.disabled()
        return context

    def detach(self) -> None:
        """Detach the prompts from the model."""
        self.model = detach(self.model)

    def save(self, folder: Path) -> None:
        """Save the prompts."""
        self.model.save_pretrained(folder)

    def load(self, folder: Path, trainable: bool = False) -> None:
        """Load saved prompts onto the model."""
        self.model = load(self.model, folder, trainable=trainable)

    def merge(self) -> None:
        """Replace the prompts by their plain tokens."""
        merge(self.model)
        assert self.model.prompts["default"].is_merged

    @property
    def is_causal(self) -> bool:
        """Whether it is a decoder-only model."""
        return not self.model.config.is_encoder_decoder and bool(self.model.can_generate())

    @property
    def padding_side(self) -> str:
        """The side where `generate` expects padding: before a text to continue, after a text to encode."""
        return "left" if self.is_causal else "right"

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def reads_sound(self) -> bool:
        """Whether its encoder reads sound features."""
        return bool(self.model.main_input_name == "input_features")

    def reading(self, ids: Tensor) -> dict[str, Tensor]:
        """Return texts as the argument of a forward."""
        return {"input_features": self.sound(ids)} if self.reads_sound else {"input_ids": ids}

    def sound(self, ids: Tensor) -> Tensor:
        """Make sound features from texts: a frame for each token of a row except padding, repeated."""
        config = self.model.config
        table = torch.randn(VOCABULARY, config.num_mel_bins, generator=torch.Generator().manual_seed(5))
        frames = torch.arange(2 * config.max_source_positions)
        rows = [row[row != 0] for row in ids]
        return torch.stack([table[row[frames % len(row)]].T for row in rows]).to(self.model.dtype)

    @property
    def can_generate(self) -> bool:
        """Whether it generates text."""
        return bool(self.model.can_generate())

    def inputs(self, ids: Tensor, mask: Tensor | None = None, **more: Any) -> dict[str, Any]:
        """Build the arguments of a forward; an encoder-decoder's decoder reads the same text for every row."""
        arguments: dict[str, Any] = {**self.reading(ids), **self.tasks(ids), **more}
        if mask is not None and not self.reads_sound:
            arguments["attention_mask"] = mask
        if self.is_encoder_decoder and not {"decoder_input_ids", "labels"} & more.keys():
            arguments["decoder_input_ids"] = random_text(DECODER_LENGTH, 77).expand(ids.shape[0], -1)
        return arguments

    def tasks(self, ids: Tensor) -> dict[str, Tensor]:
        """Build the `task_ids` of texts, if a prompt has tasks: by the first token, so that a text keeps its task."""
        prompts = self.model.prompts.values() if self.is_prompted else ()
        counts = [prompt.config.tasks for prompt in prompts if prompt.config.tasks]
        if not counts:
            return {}
        first = ids.gather(1, (ids != 0).int().argmax(dim=1, keepdim=True))[:, 0]
        return {"task_ids": first % min(counts)}

    def text_mask(self, mask: Tensor) -> dict[str, Tensor]:
        """Return which tokens are text, with or without labels, if a prompt is more than tokens in front of it."""
        goes_beyond = self.is_prompted and any(prompt.beyond_tokens for prompt in self.model.prompts.values())
        return {"text_mask": mask} if goes_beyond else {}

    def positions(self, mask: Tensor) -> dict[str, Tensor]:
        """Build the `position_ids` with which a causal model does not count padding; others need none."""
        return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if self.is_causal else {}

    def with_logits(self, mask: Tensor) -> Tensor:
        """Return which positions have relevant logits, `(rows, length)`: those of the text, or all of a decoder's."""
        if self.is_encoder_decoder:
            return torch.ones(mask.shape[0], DECODER_LENGTH, dtype=torch.bool)
        return mask.bool()

    def run(self, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Any:
        """Run a forward without gradients."""
        with torch.no_grad():
            return self.model(**self.inputs(ids, mask, **more))

    def generate(self, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
        """Generate from texts, or from their embeddings if `inputs_embeds` are among the options."""
        if not self.reads_sound:
            options["attention_mask"] = torch.ones_like(ids) if mask is None else mask
        read = () if "inputs_embeds" in options else self.reading(ids).values()
        return self.model.generate(*read, **{**self.tasks(ids), **options})

    def logits(self, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        """Return the logits of a forward without gradients."""
        result: Tensor = self.run(ids, mask, **more).logits
        return result

    def text_logits(self, texts: list[Tensor], side: str, extra: int = 0, **more: Any) -> list[Tensor]:
        """Run texts as one padded batch and return each row's logits without the padding.

        Args:
            texts: Token ids `(1, length)` each.
            side: The side of the padding.
            extra: More padding than needed.
            **more: Additional arguments of the forward.

        Returns:
            Per row `(length, vocab)`; for an encoder-decoder, the decoder's `(DECODER_LENGTH, vocab)`.
        """
        ids, mask = pad(texts, side, extra)
        positions = self.positions(mask) if self.counts_padding else {}
        logits = self.logits(ids, mask, **{**positions, **more})
        return [row[keep] for row, keep in zip(logits, self.with_logits(mask), strict=True)]

    def loss(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a training loss, with gradients: the labels are the text, or the decoder's text."""
        labels = random_text(DECODER_LENGTH, 78).expand(ids.shape[0], -1) if self.is_encoder_decoder else ids
        if mask is not None and not self.is_encoder_decoder:
            labels = labels.masked_fill(mask == 0, -100)
        text = torch.ones_like(ids) if mask is None else mask
        result: Tensor = self.model(**self.inputs(ids, mask, labels=labels, **self.text_mask(text))).loss
        return result

    def gradients(self) -> dict[str, Tensor]:
        """Return a copy of the gradients of the prompts' parameters, and clear them."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if self.is_prompt_parameter(name) and parameter.grad is not None:
                found[name] = parameter.grad.clone()
                parameter.grad = None
        return found

    def train(
        self, steps: int, optimizer: torch.optim.Optimizer | None = None, start: int = 0
    ) -> torch.optim.Optimizer:
        """Take optimizer steps over all parameters of the model, with a new text for each step.

        Args:
            steps: Number of steps.
            optimizer: The optimizer to continue with; a new one by default.
            start: Number of the first step.

        Returns:
            The optimizer.
        """
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = optimizer or torch.optim.AdamW(trainable, lr=1e-2)
        for step in range(start, start + steps):
            self.loss(random_text(LENGTHS[0], 500 + step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return optimizer
