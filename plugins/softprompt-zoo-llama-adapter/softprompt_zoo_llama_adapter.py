"""LLaMA-Adapter: trains prompts for the upper layers, which a gate that starts at zero adds to attention.

    P[layer]                                                          (tokens, hidden), trained
    K, V = key and value projections of the layer, frozen             of P[layer], not rotated
    attention[layer] = softmax(q [text keys]^T / sqrt(head_dim)) [text values]
                     + tanh(gate[layer]) * softmax(q K^T / sqrt(head_dim)) V

Enters at: self-attention of the upper layers of a causal model, as gated tokens: with their own softmax, visible to
every query, without positions.
Trained: layers * (tokens * hidden + heads); with gate="layer" layers * (tokens * hidden + 1).
Merges to: keys, values and tanh(gate) of each layer.

Source: Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention", 2023 (arXiv
2303.16199), section 3; reference code OpenGVLab/LLaMA-Adapter, `alpaca_finetuning_v1/llama/model.py`.
Differs from the source: tanh is always applied to the gate, as in the reference's training code; its inference code and
the paper's equation have no tanh. All causal models on transformers' attention interface are supported, with their
grouped heads and key norms. The multi-modal variant is left out.
PEFT: ADAPTION_PROMPT on llama and mistral, with gate="layer"; it stores tanh(gate).
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo

PEFT_TYPES = ("ADAPTION_PROMPT",)
RECIPE = zoo.Recipe(
    learning_rate=3e-3,
    steps=200,
    source="the best of 3e-3, 1e-2, 3e-2 and 1e-1 in 60 steps on films with SmolLM2-135M, 10 tokens, and 200 steps "
    "beat 60 there (benchmarks/recipes.py); the paper, section 4.1, has 9e-3, weight decay 0.02, batches of 64 and "
    "5 epochs of 52,000 rows",
)
SITE = "decoder"
GATES = ("head", "layer")
PAPERS_LAYERS = 30
"""Of LLaMA-7B's 32. Source: the paper, section 4.1."""
PEFT_MODELS = ("llama", "mistral")
PEFT_KEY = "base_model.model.{module}.adaption_{kind}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of LLaMA-Adapter."""

    num_virtual_tokens: int = 10
    """Virtual tokens per adapted layer, at least 1. Source: the paper, section 4.1."""
    num_layers_from_top: int | None = None
    """Adapted layers, counted from the top; `None` for the paper's 30, or all if there are fewer."""
    gate: str = "head"
    """`"head"` for one gate per head, as in the reference; `"layer"` for one per layer, which PEFT can hold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers_from_top is not None:
            zoo.check_positive_integer("num_layers_from_top", self.num_layers_from_top)
        zoo.check_choice("gate", self.gate, GATES)


class Parameters(nn.Module):
    """Prompts and gates of the adapted layers, lowest layer first."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        layers = _adapted_layers(config, backbone)
        heads = {backbone.layers[SITE][layer].heads for layer in layers}
        if config.gate == "head" and len(heads) > 1:
            raise zoo.UnsupportedError(
                f"the adapted layers have {min(heads)} to {max(heads)} heads; gate='head' needs the same number in "
                "each; choose gate='layer'"
            )
        width = max(heads) if config.gate == "head" else 1
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.prompts = nn.Parameter(
            torch.empty(len(layers), config.num_virtual_tokens, backbone.hidden_size, **options)
        )
        self.gates = nn.Parameter(torch.empty(len(layers), width, **options))

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start from standard normal prompts and gates of zero, so that the model is unchanged."""
        self.prompts.normal_()
        self.gates.zero_()


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters, backbone: zoo.Backbone) -> zoo.VirtualTokens:
    """Project each layer's prompt to its keys and values, and gate them."""
    return _tokens(parameters, backbone)


@zoo.hookimpl
def write_peft(config: Config, parameters: Parameters, backbone: zoo.Backbone) -> zoo.PeftFiles:
    """Write prompts and gates under the names of their attention modules; gates are written as tanh(gate)."""
    if config.gate != "layer":
        raise zoo.UnsupportedError(
            "PEFT's ADAPTION_PROMPT has one gate per layer, but this prompt has one per head, which would be lost; "
            "train with gate='layer'"
        )
    layers = _adapted_layers(config, backbone)
    _check_peft_runs(backbone, layers)
    tensors = {}
    for layer, prompt, gate in zip(layers, parameters.prompts, parameters.gates.tanh(), strict=True):
        module = backbone.module_names[SITE][layer]
        tensors[PEFT_KEY.format(module=module, kind="prompt")] = prompt[None]
        tensors[PEFT_KEY.format(module=module, kind="gate")] = gate
    fields = {
        "peft_type": PEFT_TYPES[0],
        "adapter_len": config.num_virtual_tokens,
        "adapter_layers": len(layers),
        "target_modules": backbone.module_names[SITE][-1].rpartition(".")[2],
    }
    return zoo.PeftFiles(fields, tensors)


@zoo.hookimpl
def read_peft(fields: dict[str, Any], tensors: dict[str, Tensor], backbone: zoo.Backbone) -> zoo.PeftPrompt:
    """Read prompts and gates; as merged tokens if a gate is 1 or more, which is no value of tanh."""
    sizes = {}
    for name in ("adapter_len", "adapter_layers"):
        value = fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise zoo.CheckpointError(f"the PEFT adapter has {name} {value!r}; expected an integer of at least 1")
        sizes[name] = value
    options = {
        "num_virtual_tokens": sizes["adapter_len"],
        "num_layers_from_top": sizes["adapter_layers"],
        "gate": "layer",
    }
    config = Config.from_options(options)
    try:
        layers = _adapted_layers(config, backbone)
    except zoo.UnsupportedError as error:
        raise zoo.BackboneMismatchError(f"the PEFT adapter does not fit: {error}") from error
    _check_peft_runs(backbone, layers)
    prompt_shape = (1, config.num_virtual_tokens, backbone.hidden_size)
    prompts = _take(tensors, "prompt", prompt_shape, backbone, layers)[:, 0]
    gates = _take(tensors, "gate", (1,), backbone, layers)
    if gates.abs().max() < 1:
        return zoo.PeftPrompt(options, state={"prompts": prompts, "gates": gates.atanh()})
    return zoo.PeftPrompt(options, tokens=_project(prompts, gates, backbone))


def _adapted_layers(config: Config, backbone: zoo.Backbone) -> range:
    if backbone.family != "causal" or SITE not in backbone.layers:
        raise zoo.UnsupportedError(
            "llama_adapter adds to the self-attention of a causal model, but this model is of the family "
            f"{backbone.family!r}; choose prefix_tuning or prompt_tuning"
        )
    if backbone.through_cache:
        raise zoo.UnsupportedError(
            f"llama_adapter needs gated tokens, which have their own softmax, but {backbone.model_type}'s attention is "
            "reached through its cache only, which has no place for them; choose a method without gates: "
            "prefix_tuning, p_tuning_v2, prompt_tuning and p_tuning work there"
        )
    count = len(backbone.layers[SITE])
    wanted = min(PAPERS_LAYERS, count) if config.num_layers_from_top is None else config.num_layers_from_top
    if wanted > count:
        raise zoo.UnsupportedError(
            f"num_layers_from_top is {wanted}, but the model has {count} layers; choose at most {count}"
        )
    return range(count - wanted, count)


def _tokens(parameters: Parameters, backbone: zoo.Backbone) -> zoo.LayerTokens:
    return _project(parameters.prompts, parameters.gates.tanh(), backbone)


def _project(prompts: Tensor, gates: Tensor, backbone: zoo.Backbone) -> zoo.LayerTokens:
    below: list[Tensor | None] = [None] * (len(backbone.layers[SITE]) - len(prompts))
    plain = backbone.project(SITE, [*below, *prompts.unbind()]).sites[SITE]
    return zoo.LayerTokens({SITE: zoo.SiteTokens(plain.keys, plain.values, (*below, *gates.unbind()))})


def _check_peft_runs(backbone: zoo.Backbone, layers: range) -> None:
    """Refuse models on which PEFT computes something different, or fails."""
    if backbone.model_type == "gpt2":
        raise zoo.UnsupportedError(
            "on gpt2 PEFT adds the prompt's attention after the output projection instead of before it, so the same "
            "numbers would give different results; keep the prompt in our format"
        )
    if backbone.model_type not in PEFT_MODELS:
        raise zoo.UnsupportedError(
            f"PEFT's ADAPTION_PROMPT runs on {' and '.join(PEFT_MODELS)}, not on {backbone.model_type}; keep the "
            "prompt in our format"
        )
    for layer in layers:
        bias = f"{backbone.module_names[SITE][layer]}.o_proj.bias"
        if bias in backbone.parameter_names:
            raise zoo.UnsupportedError(
                f"PEFT adds {bias} a second time with the prompt, so results would differ; keep the prompt in our "
                "format"
            )
        shape = backbone.layers[SITE][layer]
        peft_groups = backbone.hidden_size // (shape.kv_heads * shape.head_dim)
        if peft_groups * shape.kv_heads != shape.heads:
            raise zoo.UnsupportedError(
                f"PEFT assumes that the width of a head is hidden size / heads = {backbone.hidden_size} / "
                f"{shape.heads}, but here it is {shape.head_dim}, so PEFT would fail; keep the prompt in our format"
            )


def _take(
    tensors: dict[str, Tensor], kind: str, shape: tuple[int, ...], backbone: zoo.Backbone, layers: range
) -> Tensor:
    """Stack PEFT's tensors of one kind over the layers."""
    found = []
    for layer in layers:
        key = PEFT_KEY.format(module=backbone.module_names[SITE][layer], kind=kind)
        if key not in tensors:
            raise zoo.BackboneMismatchError(
                f"the PEFT adapter has no tensor {key!r}; load it onto the model it was made for"
            )
        if tuple(tensors[key].shape) != shape:
            raise zoo.BackboneMismatchError(
                f"the PEFT adapter's tensor {key!r} has shape {tuple(tensors[key].shape)}; this model needs {shape}"
            )
        found.append(tensors[key].float().to(backbone.device))
    return torch.stack(found)
