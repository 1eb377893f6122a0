"""PEFT's prompts on the tiny models, as subjects of our conformance suite.

Everything is called in the way that suits PEFT best: `input_ids` by keyword, virtual positions removed from the logits.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from softprompt_zoo.testing import tiny_model
from softprompt_zoo.testing.subject import Subject

CONTEXT = {
    "cpt_token_ids": [5, 11, 12, 6, 21, 7, 5, 13, 6, 22, 23, 7],
    "cpt_mask": [1] * 12,
    "cpt_tokens_type_mask": [1, 2, 2, 3, 4, 0, 5, 6, 7, 8, 8, 0],
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "prompt_tuning": peft.PromptTuningConfig,
    "prefix_tuning": peft.PrefixTuningConfig,
    "p_tuning": lambda **options: peft.PromptEncoderConfig(encoder_hidden_size=16, **options),
    "p_tuning_v2": lambda **options: peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=16, **options),
    "multitask_prompt_tuning": lambda **options: peft.MultitaskPromptTuningConfig(num_tasks=3, num_ranks=2, **options),
    "cpt": lambda num_virtual_tokens, **options: peft.CPTConfig(**CONTEXT, **options),
    "llama_adapter": lambda num_virtual_tokens, task_type: peft.AdaptionPromptConfig(
        adapter_len=num_virtual_tokens, adapter_layers=2, task_type=task_type
    ),
    "cartridge": peft.CartridgeConfig,
}
"""Functions that build PEFT's config of a method, by our name of the method."""
PARTS = ("prompt_encoder", "adaption_")
"""Parts of the names of PEFT's prompt parameters."""
TASKS = 3


class PeftSubject(Subject):
    """A tiny model with one of PEFT's prompts."""

    @functools.cached_property
    def frozen(self) -> frozenset[str]:
        """Names of all parameters that are not trained, including a cartridge's first tokens and CPT's examples."""
        return frozenset(name for name, parameter in self.model.named_parameters() if not parameter.requires_grad)

    @classmethod
    def prompted(
        cls, architecture: str, method: str, options: Mapping[str, Any], implementation: str = "sdpa", task: str = ""
    ) -> "PeftSubject":
        """Put PEFT's prompt of a method on a tiny model, and move its parameters away from their initial values."""
        subject = cls(architecture, tiny_model(architecture, implementation=implementation, task=task))
        config = subject.config(method, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100)
            subject.model = peft.get_peft_model(subject.model, config).eval()
            subject.disturb("default")
        return subject

    def config(self, method: str, options: Mapping[str, Any]) -> Any:
        """Return PEFT's config of a method, with the model's task type."""
        kinds = {"encoder_decoder": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION"}
        kinds["classifier"] = "SEQ_CLS"
        family = "encoder_decoder" if self.is_encoder_decoder else "causal" if self.is_causal else "encoder"
        if type(self.model).__name__.endswith("ForSequenceClassification"):
            family = "classifier"
        return CONFIGS[method](num_virtual_tokens=options.get("num_virtual_tokens") or 5, task_type=kinds[family])

    def disturb(self, name: str, scale: float = 0.1) -> None:
        """Add noise to a prompt's parameters."""
        with torch.no_grad():
            for key, parameter in self.model.named_parameters():
                # The names of LLaMA-Adapter's parameters do not contain the prompt's name.
                if self.is_prompt_parameter(key) and (name in key.split(".") or "adaption_" in key):
                    parameter.add_(scale * torch.randn_like(parameter))

    @property
    def is_prompted(self) -> bool:
        """Whether the model has prompts."""
        return isinstance(self.model, peft.PeftModel)

    @property
    def counts_padding(self) -> bool:
        """Whether padding counts as text unless `position_ids` say otherwise; PEFT's prompts drop `position_ids`."""
        return not self.is_prompted or not self.model.peft_config["default"].is_prompt_learning

    @property
    def shows_attentions(self) -> bool:
        """Whether the model returns attention weights."""
        return True

    def add_longer(self, method: str, options: Mapping[str, Any]) -> None:
        """Add a second prompt, named `"longer"`."""
        self.model.add_adapter("longer", self.config(method, options))
        self.disturb("longer")

    def is_prompt_parameter(self, name: str) -> bool:
        """Return whether a name in the model's `state_dict` is that of a trained parameter of a prompt."""
        return any(part in name for part in PARTS) and name not in self.frozen

    def trained_head(self) -> dict[str, Any]:
        """Return an empty state: until it is trained, PEFT's copy of the head has the base model's values."""
        return {}

    def disabled(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the prompts are disabled."""
        context: contextlib.AbstractContextManager[Any] = self.model.disable_adapter()
        return context

    def detach(self) -> None:
        """Remove the prompts from the model."""
        self.model = self.model.get_base_model()

    def save(self, folder: Path) -> None:
        """Save the prompts."""
        self.model.save_pretrained(folder)

    def load(self, folder: Path, trainable: bool = False) -> None:
        """Put saved prompts on the model."""
        self.model = peft.PeftModel.from_pretrained(self.model, folder, is_trainable=trainable).eval()

    def merge(self) -> None:
        """Replace the prompts with their plain tokens."""
        self.model = self.model.merge_and_unload()

    def tasks(self, ids: Tensor) -> dict[str, Tensor]:
        """Build the `task_ids` of texts, if the prompt has tasks."""
        config = self.model.peft_config["default"] if self.is_prompted else None
        if not isinstance(config, peft.MultitaskPromptTuningConfig):
            return {}
        first = ids.gather(1, (ids != 0).int().argmax(dim=1, keepdim=True))[:, 0]
        return {"task_ids": first % TASKS}

    def inputs(self, ids: Tensor, mask: Tensor | None = None, **more: Any) -> dict[str, Any]:
        """Build the arguments of a forward; the argument for a prompt per row has another name in PEFT."""
        if self.is_prompted and mask is None:
            mask = torch.ones_like(ids)
        return super().inputs(ids, mask, **_per_row(more))

    def logits(self, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        """Return the logits of a forward without gradients, without PEFT's virtual positions."""
        logits = super().logits(ids, mask, **more)
        if self.is_encoder_decoder or "past_key_values" in more or logits.ndim == 2:
            return logits
        return logits[:, -ids.shape[1] :]

    def generate(self, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
        """Generate from texts or from their embeddings, which PEFT takes by keyword."""
        mask = torch.ones_like(ids) if mask is None else mask
        read = {} if "inputs_embeds" in options else {"input_ids": ids}
        return self.model.generate(**read, attention_mask=mask, **{**self.tasks(ids), **_per_row(options)})


def _per_row(arguments: dict[str, Any]) -> dict[str, Any]:
    rows = arguments.pop("prompts", None)
    if rows is None:
        return arguments
    if isinstance(rows, Tensor):
        rows = [(None, "default", "longer")[index + 1] for index in rows.tolist()]
    return {**arguments, "adapter_names": ["__base__" if row is None else row for row in rows]}
