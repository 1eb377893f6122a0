"""Methods as users see them: chosen by name, configured, and called on a model."""

import dataclasses
import html
import reprlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.config.recipe import Recipe
from softprompt_zoo.errors import PromptExistsError
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.registry import registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

DEFAULT_NAME = "default"


@dataclasses.dataclass(frozen=True, repr=False)
class Method:
    """A soft-prompt method, with the options chosen so far."""

    name: str
    """Canonical name."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options that differ from the defaults."""
    prompt_name: str | None = None
    """Name for its prompts, if chosen."""
    wrappers: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """The wrappers with options that run around its hooks, by name, with their options."""

    @property
    def _loaded(self) -> LoadedMethod:
        return registry.lookup(self.name)

    @property
    def summary(self) -> str:
        """A one-line description of what it trains."""
        return self._loaded.summary

    @property
    def config_class(self) -> type[MethodConfig]:
        """The dataclass of its options, `Config`."""
        return self._loaded.config_class

    @property
    def recipe(self) -> Recipe | None:
        """Training settings that are known to work."""
        return self._loaded.recipe

    @property
    def example_options(self) -> tuple[Mapping[str, Any], ...]:
        """Options for a prompt on a tiny model, and those for a longer one."""
        return self._loaded.example_options

    def __repr__(self) -> str:
        chosen = {"name": self.prompt_name, "wrappers": self.wrappers or None, **self.options}
        words = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in chosen.items() if value is not None)
        return f"get_method({self.name!r})" + (f".configure({words})" if words else "")

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code><br>{html.escape(self.summary)}"

    def configure(
        self, /, name: str | None = None, wrappers: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
    ) -> "Method":
        """Choose options for later.

        Args:
            name: Name for its prompts.
            wrappers: Installed wrappers with options to run around its hooks, by name, with their options.
            **options: Options of the method.

        Returns:
            A new method; this one is not changed.

        Raises:
            TypeError: If an option is unknown or of a wrong type.
            ValueError: If an option has a value that is not allowed.
            UnknownMethodError: If a wrapper is not installed.
        """
        merged = {**self.options, **options}
        chosen = self.wrappers if wrappers is None else wrappers
        self._loaded.read_options(merged)
        self._loaded.wrappers.choose(chosen)
        return Method(self.name, merged, name or self.prompt_name, chosen)

    def __call__(
        self,
        /,
        model: "PreTrainedModel",
        name: str | None = None,
        wrappers: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> "PreTrainedModel":
        """Attach a new prompt to a model and activate only it.

        Args:
            model: A transformers model. It is frozen and changed in place.
            name: Name of the prompt, `"default"` by default.
            wrappers: Installed wrappers with options to run around its hooks, by name, with their options:
                `wrappers={"noise": {"scale": 0.1}}`. Wrappers without options run around every prompt's hooks.
            **options: Options of the method.

        Returns:
            The same model.

        Raises:
            UnsupportedError: If the method cannot work on the model. Nothing is changed.
            PromptExistsError: If the model has a prompt of that name. Nothing is changed.
            UnknownMethodError: If a wrapper is not installed. Nothing is changed.
            ValueError: If an option has a value that is not allowed. Nothing is changed.
        """
        return attach_all(
            model, {name or self.prompt_name or DEFAULT_NAME: self.configure(wrappers=wrappers, **options)}
        )

    def training_arguments(
        self, output_dir: str, *, recipe: Recipe | None = None, **overrides: Any
    ) -> "TrainingArguments":
        """Turn the recipe into arguments for transformers' `Trainer`.

        Args:
            output_dir: The Trainer's output directory.
            recipe: A recipe to use instead of the method's own.
            **overrides: Any argument of `TrainingArguments`. With `num_train_epochs`, the recipe's steps are left out.

        Returns:
            The arguments.
        """
        return training_arguments(recipe or self.recipe, output_dir, **overrides)


def training_arguments(recipe: Recipe | None, output_dir: str, **overrides: Any) -> "TrainingArguments":
    """Turn a recipe into arguments for transformers' `Trainer`; arguments as in `Method.training_arguments`."""
    from transformers import TrainingArguments

    chosen: dict[str, Any] = {}
    if recipe is not None:
        chosen = {
            "learning_rate": recipe.learning_rate,
            "max_steps": recipe.steps,
            "per_device_train_batch_size": recipe.batch_size,
            "warmup_steps": recipe.warmup_steps,
            "lr_scheduler_type": recipe.schedule,
            "weight_decay": recipe.weight_decay,
            "optim": recipe.optimizer,
        }
    if "num_train_epochs" in overrides:
        chosen.pop("max_steps", None)  # it would override the epochs
    return TrainingArguments(output_dir=output_dir, **{"report_to": "none", **chosen, **overrides})


@dataclasses.dataclass(frozen=True, repr=False)
class Methods:
    """Several methods that are attached together, with their tokens in this order."""

    methods: Mapping[str, Method]

    def __repr__(self) -> str:
        return f"combine({', '.join(map(repr, self.methods.values()))})"

    def __call__(self, model: "PreTrainedModel") -> "PreTrainedModel":
        """Attach a new prompt for each method and activate them all.

        Args:
            model: A transformers model. It is frozen and changed in place.

        Returns:
            The same model.

        Raises:
            UnsupportedError: If a method cannot work on the model. Nothing is changed.
        """
        return attach_all(model, self.methods)


def get_method(name: str) -> Method:
    """Choose a method by name or alias.

    Args:
        name: Name or alias; case, `-` and `_` do not matter.

    Returns:
        The method.

    Raises:
        UnknownMethodError: If no installed plugin offers it.
        PluginError: If its plugin fails to load.
    """
    return Method(registry.lookup(name).name)


def combine(*methods: "str | Method") -> Methods:
    """Combine several methods, to attach to one model.

    Args:
        *methods: Names or configured methods, at least one. A prompt is named by `configure(name=…)`, or after
            its method.

    Returns:
        The combined methods; call them on a model to attach them all.

    Raises:
        ValueError: If no methods are given.
        PromptExistsError: If two prompts would have the same name.
    """
    if not methods:
        raise ValueError("combine was given no methods; name at least one of zoo.list_methods()")
    return Methods(_by_prompt_name(methods))


def _by_prompt_name(methods: Iterable["str | Method"]) -> dict[str, Method]:
    """Return methods by their prompts' names; refuse the same name for two."""
    named: dict[str, Method] = {}
    for method in methods:
        chosen = method if isinstance(method, Method) else get_method(method)
        name = chosen.prompt_name or chosen.name
        if name in named:
            raise PromptExistsError(
                f"two prompts named {name!r}; name them: zoo.get_method({chosen.name!r}).configure(name=…)"
            )
        named[name] = chosen
    return named


def attach_all(model: "PreTrainedModel", methods: Mapping[str, Method]) -> "PreTrainedModel":
    """Attach a prompt for each method, all or none, and activate exactly these."""
    from softprompt_zoo.model.attachment import attach_or_add, attached_prompts
    from softprompt_zoo.model.making import make_prompt
    from softprompt_zoo.model.prompts import Prompts
    from softprompt_zoo.prompt.token_checks import check_shared_room
    from softprompt_zoo.trial.examination import examine

    own = attached_prompts(model)
    backbone, stacks = examine(model) if own is None else (own.backbone, {})
    prompts = Prompts(backbone) if own is None else own
    for name in methods:
        prompts.check_name(name)
    made = {
        name: make_prompt(method._loaded, method.options, backbone, method.wrappers) for name, method in methods.items()
    }
    check_shared_room(made, backbone)
    attach_or_add(model, backbone, stacks, made).choose(tuple(made))
    return model
