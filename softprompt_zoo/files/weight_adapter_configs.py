"""Reading a PEFT adapter's config from a file: only known fields with bounded values reach PEFT.

PEFT imports, opens and runs what a config names: modules, files, regular expressions. A saved folder may come from
anyone, so every field is checked here first. If the config selects an adapter's modules by a regular expression, they
are read from the names of its tensors instead.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt_zoo.errors import CheckpointError, UnsupportedError, check_packages

TYPES = (
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "HRA", "LN_TUNING"),
    *("TRAINABLE_TOKENS", "FOURIERFT", "DELORA", "MISS", "C3A"),
)
"""PEFT types that can be loaded onto a model from a file; each is saved and loaded in a test."""
IGNORED = (
    *("auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode"),
    *("peft_type", "peft_version", "revision", "runtime_config"),
)
"""Fields that do not affect an adapter on an existing model: a file's values of them are not passed on."""
ALL_LINEAR = "all-linear"
"""PEFT's word for all linear layers; any other text for `target_modules` is a regular expression to it."""
MAX_ENTRIES = 10_000
"""Maximum length of a list or mapping. PEFT compares each entry with each module of the model. Our choice."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,300}")
"""A module's name. PEFT puts some into regular expressions, where a dot matches any character."""
PATTERN = re.compile(r"\^?(\.\*)?(\\?\.|\\d\+|[A-Za-z0-9_-]){1,300}\$?")
"""A module's name as a regular expression that matches in linear time."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """The allowed values of a field."""

    expected: str
    """Description for messages."""
    accepts: Callable[[Any], bool]


def _integer(low: int, high: int) -> Kind:
    def accepts(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    return Kind(f"an integer from {low} to {high}", accepts)


def _number(low: float, high: float) -> Kind:
    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high  # NaN is not

    return Kind(f"a number from {low:g} to {high:g}", accepts)


def _choice(*allowed: Any) -> Kind:
    return Kind(f"one of {', '.join(map(repr, allowed))}", lambda value: value in allowed)


def _names(value: Any) -> bool:
    return _is_list(value) and all(isinstance(name, str) and NAME.fullmatch(name) for name in value)


def _indices(value: Any) -> bool:
    return _is_list(value) and all(type(index) is int and 0 <= index < 2**31 for index in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_ENTRIES


def _patterns(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def accepts_all(value: Any) -> bool:
        if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
            return False
        return all(PATTERN.fullmatch(pattern) and accepts(entry) for pattern, entry in value.items())

    return accepts_all


def _indices_by_name(value: Any) -> bool:
    if isinstance(value, dict) and len(value) <= MAX_ENTRIES:
        return all(NAME.fullmatch(name) and _indices(indices) for name, indices in value.items())
    return _indices(value)


def _ranks(value: Any) -> bool:
    # AdaLoRA keeps a mask of the remaining ranks.
    is_mask = isinstance(value, list) and all(type(entry) is bool for entry in value)
    return is_mask or SIZE.accepts(value)


def _start(value: Any) -> bool:
    # For others, PEFT needs data or files that are not available, or changes the base's weights randomly.
    known = ("gaussian", "eva", "orthogonal", "mica", "pissa", "olora", "lycoris", "bat", "mini", "xavier_uniform",
             "kaiming_uniform")  # fmt: skip
    return type(value) is bool or (isinstance(value, str) and value in known)


FLAG = Kind("true or false", lambda value: type(value) is bool)
SIZE = _integer(0, 1_000_000)
STEPS = _integer(0, 10**12)
PROBABILITY = _number(0, 1)
FACTOR = _number(-1e9, 1e9)
NAMES = Kind(f"a list of at most {MAX_ENTRIES} names of modules", _names)
MODULES = Kind("a list of names of modules, or a pattern", lambda value: isinstance(value, str) or _names(value))
SIZE_PATTERNS = Kind("sizes by plain names of modules", _patterns(_ranks))
FACTOR_PATTERNS = Kind("numbers by plain names of modules", _patterns(FACTOR.accepts))
INDICES = Kind("a list of indices", _indices)
INDEX_OR_INDICES = Kind("an index, or a list of indices", lambda value: _indices([value]) or _indices(value))
INDICES_BY_NAME = Kind("a list of indices, or such lists by names of modules", _indices_by_name)
TASK = _choice("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
START = Kind("true, false, or a start that needs no data and gives the same each time", _start)

_BY_KIND: Sequence[tuple[Kind, str]] = (
    (MODULES, "target_modules exclude_modules feedforward_modules layers_pattern"),
    (NAMES, "modules_to_save target_parameters"),
    (INDEX_OR_INDICES, "layers_to_transform"),
    (INDICES, "token_indices"),
    (INDICES_BY_NAME, "trainable_token_indices"),
    (SIZE_PATTERNS, "rank_pattern n_frequency_pattern block_size_pattern"),
    (FACTOR_PATTERNS, "alpha_pattern lambda_pattern"),
    (SIZE, "r init_r target_r mini_r oft_block_size block_size n_frequency qalora_group_size"),
    (_integer(0, 100), "num_cayley_neumann_terms"),
    (_integer(-1, 1_000_000), "decompose_factor"),
    (_integer(0, 2**63 - 1), "random_loc_seed"),
    (STEPS, "tinit tfinal deltaT total_step"),
    (PROBABILITY, "lora_dropout rank_dropout module_dropout miss_dropout beta1 beta2"),
    (FACTOR, "lora_alpha alpha scaling eps orth_reg_weight delora_lambda"),
    (_choice("none", "all", "lora_only", "oft_only", "hra_only", "delora_only"), "bias"),
    (TASK, "task_type"),
    (START, "init_lora_weights init_weights init_ia3_weights"),
    (FLAG, "fan_in_fan_out use_rslora use_dora use_qalora lora_bias ensure_weight_tying use_effective_conv2d"),
    (FLAG, "decompose_both rank_dropout_scale coft block_share use_cayley_neumann apply_GS"),
)
FIELDS: Mapping[str, Kind] = {name: kind for kind, names in _BY_KIND for name in names.split()}
"""Allowed values by field; fields of the same name mean the same in all types."""


def make_config(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> Any:
    """Make PEFT's config of an adapter from the fields in a file.

    Args:
        fields: Read from the file. Not changed.
        tensors: The adapter's tensors by their names within the model, used to find its modules if the file selects
            them by a regular expression.
        path: The file, for messages.

    Returns:
        PEFT's config.

    Raises:
        CheckpointError: If a field has a value that is not allowed.
        MissingPackageError: If PEFT is not installed.
        UnsupportedError: If the type or a field of the adapter is not supported.
    """
    check_packages(f"the PEFT adapter in {path.parent} needs", "peft")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING

    peft_type = fields.get("peft_type")
    if peft_type not in TYPES or peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UnsupportedError(
            f"{path} has peft_type {_short(peft_type)}; only adapters of the types {', '.join(TYPES)} are loaded "
            f"from a file; {_BY_HAND}"
        )
    made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    chosen = _checked(fields, _defaults(made), path)
    _name_modules(chosen, tensors, PEFT_TYPE_TO_PREFIX_MAPPING[peft_type])
    if chosen.get("init_lora_weights") == "eva":
        chosen["init_lora_weights"] = True  # the rest of EVA is done, and the base's weights are unchanged
    try:
        return made(**chosen, inference_mode=True)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not an adapter that the installed PEFT knows ({error})") from error


_BY_HAND = (
    "if you trust it, add the adapter to the model with PEFT under the same name, and load again: then its tensors are "
    "read, but not its config"
)


def _checked(fields: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields that are set and may be passed on."""
    chosen = {name: value for name, value in fields.items() if not _says_nothing(name, value, defaults)}
    for name, value in chosen.items():
        _check(name, value, defaults, path)
    return chosen


def _check(name: str, value: Any, defaults: Mapping[str, Any], path: Path) -> None:
    """Refuse a field that is not passed on, or has a value that is not allowed."""
    if name not in FIELDS.keys() & defaults.keys():
        raise UnsupportedError(
            f"{path} has {name} = {_short(value)}, which is not passed to PEFT from a file; {_BY_HAND}"
        )
    if not FIELDS[name].accepts(value):
        raise CheckpointError(f"{path} has {name} = {_short(value)}; expected {FIELDS[name].expected}; {_BY_HAND}")


def _says_nothing(name: str, value: Any, defaults: Mapping[str, Any]) -> bool:
    """Return whether a field may be left out: it has its default, or is unknown to this PEFT and off."""
    if name in IGNORED:
        return True
    if name not in defaults:
        return _asks_for_nothing(value)
    is_default = type(value) is type(defaults[name]) and value == defaults[name]
    return is_default or (name not in FIELDS and _asks_for_nothing(value))


def _defaults(config: Any) -> dict[str, Any]:
    """Return the default values of a config class; `None` for those made by a factory."""
    fields = dataclasses.fields(config)
    return {field.name: None if field.default is dataclasses.MISSING else field.default for field in fields}


def _has_expression(chosen: Mapping[str, Any]) -> bool:
    """Return whether fields select modules by a regular expression."""
    targets = chosen.get("target_modules")
    choices = [chosen.get(name) for name in ("exclude_modules", "feedforward_modules", "layers_pattern")]
    return any(isinstance(choice, str) for choice in choices) or (
        isinstance(targets, str) and targets.lower() != ALL_LINEAR
    )


def _asks_for_nothing(value: Any) -> bool:
    return value is None or value is False or value == {}


def _name_modules(chosen: dict[str, Any], tensors: Mapping[str, Tensor], prefix: str) -> None:
    """List the modules that have tensors if the fields select them by a regular expression.

    Args:
        chosen: The fields. Changed in place.
        tensors: The adapter's tensors by their names within the model.
        prefix: Prefix of PEFT's names of this type's parameters.
    """
    if not _has_expression(chosen):
        return
    owners = _owners(tensors, prefix)
    chosen["target_modules"] = sorted(owners)
    if "feedforward_modules" in chosen:  # IA³: factors on inputs are a row, those on outputs a column
        chosen["feedforward_modules"] = sorted(name for name, tensor in owners.items() if tensor.shape[0] == 1)
    for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        chosen.pop(name, None)


def _owners(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the modules that have tensors of a type of adapter, each with one of them."""
    return {key.rsplit(f".{prefix}", 1)[0]: tensor for key, tensor in tensors.items() if f".{prefix}" in key}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
