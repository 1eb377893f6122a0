"""This library under the names that PEFT's tests call, with the equivalent of each call of PEFT.

It is only for PEFT's tests. It supplies PEFT's error messages, file names and model cards where the tests look for
them; what a prompt does and what its files say comes from this library.
"""

import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
from peft.tuners.cpt.model import CPTEmbedding
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import softprompt_zoo as zoo

PROMPT_CONFIGS = (peft.PromptLearningConfig, peft.AdaptionPromptConfig)
"""Configs of methods that this library has; others go to PEFT itself."""
OURS, SUBMODULE = "prompts.", "prompt_encoder."
TENSORS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"


def _start(config: Any) -> dict[str, Any]:
    """Return the options for an input-level prompt's initial values, from PEFT's `prompt_tuning_init`."""
    kind = getattr(config.prompt_tuning_init, "value", config.prompt_tuning_init)
    if kind == "TEXT":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path)
        return {"init": "text", "init_text": config.prompt_tuning_init_text, "tokenizer": tokenizer}
    return {"init": "sampled" if kind == "SAMPLE_VOCAB" else "random"}


def _prompt_tuning(config: Any) -> dict[str, Any]:
    return {"num_virtual_tokens": config.num_virtual_tokens, **_start(config)}


def _prefix_tuning(config: Any) -> dict[str, Any]:
    net = {"reparameterization": "mlp", "reparameterization_size": config.encoder_hidden_size}
    start = {"init": "zero"} if getattr(config, "init_weights", None) == "zero" else {"init": "random"}
    sites = {"sites": ("decoder",)} if config.task_type == "SEQ_2_SEQ_LM" else {}
    options = net if config.prefix_projection else start
    return {"num_virtual_tokens": config.num_virtual_tokens, **options, **sites}


def _p_tuning(config: Any) -> dict[str, Any]:
    kind = getattr(config.encoder_reparameterization_type, "value", config.encoder_reparameterization_type)
    size = {"reparameterization_size": config.encoder_hidden_size} if config.encoder_hidden_size else {}
    return {
        "num_virtual_tokens": config.num_virtual_tokens,
        "reparameterization": str(kind).lower(),
        "init": "random",
        **size,
    }


def _multitask(config: Any) -> dict[str, Any]:
    options = {"num_virtual_tokens": config.num_virtual_tokens, "num_tasks": config.num_tasks, "rank": config.num_ranks}
    sources = {"AVERAGE_SOURCE_TASKS": "average", "EXACT_SOURCE_TASK": 0, "ONLY_SOURCE_SHARED": "shared"}
    source = sources.get(getattr(config.prompt_tuning_init, "value", ""))
    if source is None:
        return {**options, "init": "random"}
    folder = str(Path(config.prompt_tuning_init_state_dict_path).parent)
    return {**options, "init": folder, "source_task": source}


def _cpt(config: Any) -> dict[str, Any]:
    return {
        "token_ids": tuple(config.cpt_token_ids),
        "token_types": tuple(config.cpt_tokens_type_mask),
        "radius": config.opt_projection_epsilon,
        "format_radius": config.opt_projection_format_epsilon,
        "decay": config.opt_loss_decay_factor,
    }


def _cartridge(config: Any) -> dict[str, Any]:
    sizes = {"num_virtual_tokens": config.num_virtual_tokens, "num_frozen_tokens": config.num_frozen_tokens}
    return {**sizes, "init": "random"}


def _adaption(config: Any) -> dict[str, Any]:
    sizes = {"num_virtual_tokens": config.adapter_len, "num_layers_from_top": config.adapter_layers}
    return {**sizes, "gate": "layer"}


METHODS: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "PROMPT_TUNING": ("prompt_tuning", _prompt_tuning),
    "PREFIX_TUNING": ("prefix_tuning", _prefix_tuning),
    "P_TUNING": ("p_tuning", _p_tuning),
    "MULTITASK_PROMPT_TUNING": ("multitask_prompt_tuning", _multitask),
    "CPT": ("cpt", _cpt),
    "CARTRIDGE": ("cartridge", _cartridge),
    "ADAPTION_PROMPT": ("llama_adapter", _adaption),
}
"""For each of PEFT's types, our method and the function that builds its options from PEFT's config."""


class PromptedPeftModel(nn.Module):
    """A prompted model with the methods of a `PeftModel`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model
        self.peft_config: dict[str, Any] = {}

    @classmethod
    def made(cls, model: Any, config: Any, adapter_name: str = "default", **ignored: Any) -> Any:
        """Replace `get_peft_model`."""
        if not isinstance(config, PROMPT_CONFIGS):
            return GET_PEFT_MODEL(model, config, adapter_name, **ignored)
        found = cls(model)
        found.add_adapter(adapter_name, config)
        found.set_adapter(adapter_name)
        return found

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        model_id: Any,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: Any = None,
        **ignored: Any,
    ) -> Any:
        """Replace `PeftModel.from_pretrained`."""
        saved = peft.PeftConfig.from_pretrained(str(model_id))
        if not isinstance(saved, PROMPT_CONFIGS):
            return PEFT_MODEL.from_pretrained(model, model_id, adapter_name, is_trainable, config, **ignored)
        pools = _pools_prompt(model, saved)
        found = cls(zoo.load(model, str(model_id), name=adapter_name, trainable=is_trainable, pools_prompt=pools))
        found.peft_config[adapter_name] = saved if config is None else config
        found.peft_config[adapter_name].inference_mode = not is_trainable
        return found

    def load_adapter(self, model_id: Any, adapter_name: str, is_trainable: bool = False, **ignored: Any) -> Any:
        """Replace `PeftModel.load_adapter`, which keeps the active adapter."""
        active = self.base_model.prompts.active
        saved = peft.PeftConfig.from_pretrained(str(model_id))
        pools = _pools_prompt(self.base_model, saved)
        zoo.load(self.base_model, str(model_id), name=adapter_name, trainable=is_trainable, pools_prompt=pools)
        self.base_model.prompts.activate(*active)
        self.peft_config[adapter_name] = saved
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])

    def add_adapter(self, adapter_name: str, config: Any, **ignored: Any) -> None:
        """Replace `PeftModel.add_adapter`."""
        method, options = METHODS[config.peft_type.value]
        pools = {"pools_prompt": True} if _pools_prompt(self.base_model, config) else {}
        if hasattr(self.base_model, "prompts"):
            self.base_model.prompts.add(_allowed(adapter_name), method, **options(config), **pools)
        else:
            zoo.get_method(method)(self.base_model, _allowed(adapter_name), **options(config), **pools)
        self.base_model.prompts[_allowed(adapter_name)].requires_grad_(not config.inference_mode)
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = getattr(self.base_model.config, "_name_or_path", None)
        self.peft_config[adapter_name] = config

    def set_adapter(self, adapter_name: str) -> None:
        """Replace `PeftModel.set_adapter`."""
        self.base_model.prompts.activate(_allowed(adapter_name))

    def delete_adapter(self, adapter_name: str) -> None:
        """Replace `PeftModel.delete_adapter`, with PEFT's message for an unknown name."""
        try:
            self.base_model.prompts.remove(adapter_name)
        except zoo.UnknownPromptError as error:
            raise ValueError(f"Adapter {adapter_name} does not exist") from error
        del self.peft_config[adapter_name]

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Replace `PeftModel.disable_adapter`."""
        with self.base_model.prompts.disabled():
            yield

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active prompts."""
        return list(self.base_model.prompts.active)

    @property
    def active_adapter(self) -> str:
        """Name of the active prompt."""
        return self.active_adapters[0]

    @property
    def active_peft_config(self) -> Any:
        """The config that the active prompt was created from."""
        return self.peft_config[self.active_adapter]

    def get_base_model(self) -> Any:
        """Return the model inside."""
        return self.base_model

    def supports_lora_conversion(self) -> bool:
        """Return whether the model can become a LoRA; no prompt can."""
        return False

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Replace `PeftModel.push_to_hub`."""
        return self.base_model.push_to_hub(*args, **kwargs)

    def prepare_model_for_gradient_checkpointing(self, model: Any) -> Any:
        """Replace PEFT's method; nothing needs to be prepared here."""
        return model

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        **ignored: Any,
    ) -> None:
        """Save each prompt as PEFT does (`default` in the folder, others in subfolders), with PEFT's model card.

        This library writes only safetensors; for tests that look for a pickled file, the tensors are converted.
        """
        for name in self.peft_config if selected_adapters is None else selected_adapters:
            folder = Path(save_directory) / ("" if name == "default" else name)
            zoo.export(self.base_model, folder, to="peft", name=name)
            base = json.loads((folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
            card = f"---\nlibrary_name: peft\nbase_model: {base}\n---\n"
            (folder / "README.md").write_text(card, "utf-8")
            if not safe_serialization:
                torch.save(load_file(folder / TENSORS), folder / PICKLED)
                (folder / TENSORS).unlink()

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self.base_model.generate(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the tensors of the model and, for each prompt, the contents of its file for PEFT."""
        found = {f"base_model.{key}": tensor for key, tensor in base_state(self).items()}
        for name in self.peft_config:
            found |= {
                f"{SUBMODULE}{name}.{key}": tensor for key, tensor in prompt_state(self, adapter_name=name).items()
            }
        return found

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield parameters; a prompt's have the name of PEFT's module, by which tests recognize them."""
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.replace(f"base_model.{OURS}", SUBMODULE, 1), parameter

    @property
    def prompt_encoder(self) -> Any:
        """The prompts under the names of PEFT's modules."""
        return PromptEncoders(self.base_model.prompts)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)


class PromptEncoders:
    """The prompts as PEFT's `prompt_encoder`."""

    def __init__(self, prompts: Any) -> None:
        self._prompts = prompts

    def __getitem__(self, name: str) -> Any:
        return PromptEncoder(self._prompts, name)

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters."""
        return [p for prompt in self._prompts.values() for p in prompt.learned.parameters() if p.requires_grad]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trained parameters, by name."""
        found = [(f"{name}.{key}", p) for name, prompt in self._prompts.items() for key, p in _learned(prompt)]
        return [(name, parameter) for name, parameter in found if parameter.requires_grad]


class Rows:
    """Some rows of a prompt, read from its merged tokens and written into its parameters."""

    def __init__(self, encoder: "PromptEncoder", rows: slice, is_trained: bool) -> None:
        self.encoder, self.rows, self.is_trained = encoder, rows, is_trained

    @property
    def requires_grad(self) -> bool:
        """Whether the rows are trained."""
        return self.is_trained and any(p.requires_grad for p in self.encoder.prompt.learned.parameters())

    @property
    def data(self) -> "Rows":
        """The rows themselves, whose `fill_` is called next."""
        return self

    def fill_(self, value: float) -> None:
        """Set every value."""
        getattr(self.encoder.prompt.learned, "trained" if self.is_trained else "frozen").data.fill_(value)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [arg.encoder.weight[arg.rows] if isinstance(arg, Rows) else arg for arg in args]
        return function(*plain, **(kwargs or {}))


class PromptEncoder:
    """One prompt as one of PEFT's modules; its tensors have a row for each virtual token."""

    def __init__(self, prompts: Any, name: str) -> None:
        self.prompt, self.backbone = prompts[name], prompts.backbone

    @property
    def weight(self) -> Tensor:
        """The whole prompt `(tokens, features)`."""
        with torch.no_grad():
            tokens = self.prompt.merged_tokens(self.backbone)
        return tokens.embeddings if isinstance(tokens, zoo.InputTokens) else _flat(tokens)

    @property
    def embedding(self) -> Any:
        """PEFT's embedding module; for CPT, it holds the examples' own embeddings, which are not trained."""
        ids = getattr(self.prompt.config, "token_ids", None)
        return SimpleNamespace(weight=self.weight if ids is None else self.backbone.embed(torch.tensor(ids)).detach())

    def get_projection(self) -> Tensor:
        """Return how far CPT's tokens have moved `(tokens, features)`."""
        return self.weight - self.embedding.weight

    def get_epsilon(self) -> Tensor:
        """Return how far CPT's tokens may move `(tokens,)`, as PEFT computes it."""
        chosen = self.prompt.config
        config = SimpleNamespace(
            cpt_tokens_type_mask=list(chosen.token_types),
            opt_projection_epsilon=chosen.radius,
            opt_projection_format_epsilon=chosen.format_radius,
            token_dim=self.backbone.hidden_size,
        )
        return CPTEmbedding.get_epsilon(SimpleNamespace(config=config))

    @property
    def trainable_embedding(self) -> Any:
        """The trained rows of a cartridge; values written into them go into the prompt."""
        return Rows(self, slice(self._frozen, None), True)

    @property
    def frozen_embedding(self) -> Any:
        """The frozen rows of a cartridge."""
        return Rows(self, slice(0, self._frozen), False) if self._frozen else None

    @property
    def _frozen(self) -> int:
        return int(self.prompt.config.num_frozen_tokens)


def _pools_prompt(model: Any, config: Any) -> bool:
    """Return whether PEFT lets a classifier's head read the first virtual token: only at the input of an encoder."""
    is_at_input = isinstance(config, (peft.PromptTuningConfig, peft.PromptEncoderConfig))
    return is_at_input and config.task_type == "SEQ_CLS" and hasattr(model, "classifier")


def _allowed(name: str) -> str:
    """Return our name for PEFT's name of a prompt; our names contain no spaces."""
    return name.replace(" ", "_")


def _flat(tokens: zoo.LayerTokens) -> Tensor:
    [site] = tokens.sites.values()
    return zoo.flatten_layers(site)


def _learned(prompt: Any) -> list[tuple[str, nn.Parameter]]:
    return list(prompt.learned.named_parameters())


def base_state(model: Any, **ignored: Any) -> dict[str, Tensor]:
    """Replace `get_base_model_state_dict`; return all tensors except those of prompts."""
    found = model.base_model.state_dict()
    return {key: tensor for key, tensor in found.items() if not key.startswith(OURS)}


def set_base_state(model: Any, state_dict: dict[str, Tensor], strict: bool = True, **ignored: Any) -> Any:
    """Replace `set_base_model_state_dict`."""
    found = model.base_model.load_state_dict(state_dict, strict=False)
    missing = [key for key in found.missing_keys if not key.startswith(OURS)]
    return SimpleNamespace(missing_keys=missing, unexpected_keys=found.unexpected_keys)


def prompt_state(model: Any, *args: Any, adapter_name: str = "default", **kwargs: Any) -> dict[str, Tensor]:
    """Replace `get_peft_model_state_dict`; return the contents of the file for PEFT."""
    if not isinstance(model, PromptedPeftModel):
        return GET_STATE(model, *args, adapter_name=adapter_name, **kwargs)
    with tempfile.TemporaryDirectory() as folder:
        zoo.export(model.base_model, folder, to="peft", name=adapter_name)
        return load_file(Path(folder) / TENSORS)


def start_from_cache(model: Any, *, past_key_values: Any, num_virtual_tokens: int, **ignored: Any) -> Tensor:
    """Replace `initialize_kv_prefix_from_past_key_values`: a cache's first tokens become the active prompt's.

    They are written into the prompt's file for PEFT, which is then loaded in place of the prompt.
    """
    flat: Tensor = FROM_CACHE(past_key_values, num_virtual_tokens=num_virtual_tokens)
    name = model.active_adapter
    with tempfile.TemporaryDirectory() as folder:
        zoo.export(model.base_model, folder, to="peft", name=name)
        save_file({"prompt_embeddings": flat.contiguous()}, Path(folder) / TENSORS)
        model.base_model.prompts.remove(name)
        zoo.load(model.base_model, folder, name=name, trainable=True)
    model.set_adapter(name)
    return flat


GET_PEFT_MODEL, PEFT_MODEL, GET_STATE = peft.get_peft_model, peft.PeftModel, peft.get_peft_model_state_dict
FROM_CACHE = peft.prompt_embeddings_from_past_key_values
PLUGINS = {"cartridge": "softprompt_zoo_cartridge", "llama_adapter": "softprompt_zoo_llama_adapter"}
"""Methods and modules of this repository's plugin packages, whose folders are on the path."""
NAMES: dict[str, Any] = {
    "PeftModel": PromptedPeftModel,
    "get_peft_model": PromptedPeftModel.made,
    "get_peft_model_state_dict": prompt_state,
    "get_base_model_state_dict": base_state,
    "set_base_model_state_dict": set_base_state,
    "initialize_kv_prefix_from_past_key_values": start_from_cache,
}


def install() -> None:
    """Put the stand-ins into PEFT's modules; call it before importing PEFT's tests, which take the names from there."""
    for name, module in PLUGINS.items():
        if name not in zoo.list_methods():
            zoo.register(importlib.import_module(module), name)
    for name, value in NAMES.items():
        for module in (peft, peft.peft_model, peft.utils, peft.utils.save_and_load):
            if hasattr(module, name):
                setattr(module, name, value)
