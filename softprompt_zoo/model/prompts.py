"""The prompts of one model: a mapping from name to prompt, some of them active."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_weight
from softprompt_zoo.config.options import NAME_PATTERN
from softprompt_zoo.errors import PromptExistsError, UnknownPromptError
from softprompt_zoo.model import resolve
from softprompt_zoo.model.context import disable
from softprompt_zoo.model.entry import Entry
from softprompt_zoo.model.lending import Lender, Lending
from softprompt_zoo.model.making import make_prompt
from softprompt_zoo.model.optimizer_steps import trained_groups, watch
from softprompt_zoo.model.prompts_seen import PromptsSeen
from softprompt_zoo.prompt.fits import fitting_copy
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.prompt.token_checks import check_shared_room
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.sites.call import Call
from softprompt_zoo.sites.prompts_argument import check_combination
from softprompt_zoo.sites.request import Request
from softprompt_zoo.sites.selection import Part, Selection


class Prompts(PromptsSeen):
    """The prompts of a model, by name, in the order in which they were added; `model.prompts`."""

    def __init__(self, backbone: Backbone, architecture: str = "", base_name: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        """Sizes of the model."""
        self.architecture = architecture
        """Name of the model's class."""
        self.base_name = base_name
        """Name or path the model was loaded from, if known."""
        self.entry = Entry()
        self.era = object()
        """Replaced by a change that texts in progress should follow."""
        self.lending: Lending | None = None
        """The bank, and what was borrowed from it."""
        self.is_watched = True  # a copy is not watched yet
        self.choose(())

    def choose(self, names: Sequence[str]) -> None:
        """Set the prompts that rows see; they exist and together leave room for text, as `activate` checks."""
        self.chosen = Selection((tuple([Part(name) for name in names]),), None)
        """The active prompts, in every row."""

    @property
    def bank(self) -> Lender | None:
        """A `PromptBank` whose names `prompts` accepts, too; the model's own take precedence. `None` for no bank.

        It is not part of the model: nothing in it is trained, saved or counted.
        """
        return None if self.lending is None else self.lending.lender

    @bank.setter
    def bank(self, bank: Lender | None) -> None:
        self.lending = None if bank is None else Lending(bank, self.backbone)

    def __setattr__(self, name: str, value: Any) -> None:
        # If there is a prompt of that name, torch would set that.
        if name == "bank" or name in self.__dict__.get("_modules", ()):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forget(self) -> None:
        """Make texts in progress rebuild their prompts when they continue, from the prompts and model at that time.

        A new text needs no `forget`: it sees all changes. While a text is decoded, with a cache or within
        one `generate`, its prompts stay as they were built when it started, just like its own keys and values.
        """
        self.era = object()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.is_watched = False
        if self.bank is not None and self.bank.backbone is None:
            self.bank.backbone = self.backbone
        for prompt in self.values():
            prompt.set_model_prompts(self)

    def __getitem__(self, name: str) -> Prompt:
        self._check_there(name)
        return self._modules[name]  # type: ignore[return-value]

    def _check_there(self, name: str, instead: str = "") -> None:
        if name not in self._modules:
            there = ", ".join(map(repr, self)) or "none"
            advice = "" if self.lending is None else self.lending.advise(name, instead)
            raise UnknownPromptError(f"no prompt {name!r}; the model has {there}{advice}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def keys(self) -> list[str]:
        """Return the names."""
        return list(self._modules)

    def values(self) -> list[Prompt]:
        """Return the prompts."""
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, Prompt]]:
        """Return names and prompts."""
        return [(name, self[name]) for name in self]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a prompt, or `default` if there is none of that name."""
        return self._modules.get(name, default)

    def add(
        self, /, name: str, method: Any, wrappers: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
    ) -> Prompt:
        """Add a prompt; it is not activated.

        Args:
            name: Its name: letters, digits, `_` and `-`.
            method: A method's name, what `get_method` returns, or a ready prompt, which is copied: the result of
                `blend` or `truncate`, or a prompt of another model of the same sizes.
            wrappers: Installed wrappers that should run around its hooks, by name, with their options; by default
                those of `method`.
            **options: Options of the method; a ready prompt takes none.

        Returns:
            The prompt.

        Raises:
            PromptExistsError: If the name is already taken.
            ValueError: If the name or an option is not allowed.
            TypeError: If there are options with a ready prompt.
            BackboneMismatchError: If a ready prompt was made for a model of different sizes.
        """
        self.check_name(name)
        if isinstance(method, Prompt):
            given = options if wrappers is None else {**options, "wrappers": wrappers}
            self.insert(name, fitting_copy(method, given, self.backbone))
            return self[name]
        wrappers = {**getattr(method, "wrappers", {}), **(wrappers or {})}
        loaded = registry.lookup(getattr(method, "name", method))
        made = make_prompt(loaded, {**getattr(method, "options", {}), **options}, self.backbone, wrappers)
        self.insert(name, made)
        return made

    def check_name(self, name: str) -> None:
        """Refuse a name that is taken or not allowed."""
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"prompt name is {name!r}; expected letters, digits, '_' and '-', as templates need")
        if name in self._modules:
            raise PromptExistsError(
                f"the model already has a prompt {name!r}; choose another name, or remove that one first"
            )

    def insert(self, name: str, prompt: Prompt) -> None:
        """Insert a ready prompt under a free name."""
        self.check_name(name)
        if prompt.is_merged:
            prompt.widen()
        else:
            watch(prompt, self.backbone)  # a compiled forward cannot
        prompt.train(self.training)
        prompt.set_model_prompts(self)
        # Directly into the dictionary: `add_module` refuses names such as "train" that are attributes here.
        self._modules[name] = prompt
        if prompt.beyond_tokens is not None:
            self.entry.branch_inputs.follow(self.values())

    def remove(self, name: str) -> None:
        """Remove a prompt. If it was the only active one, the first remaining one is activated, as in PEFT.

        Args:
            name: Its name.

        Raises:
            UnknownPromptError: If there is no prompt of that name.
        """
        self._check_there(name, f"model.prompts.bank.delete({name!r}) deletes it there")
        del self._modules[name]
        self.entry.branch_inputs.follow(self.values())
        others = [other for other in self.active if other != name]
        if name in self.active and not others and len(self):
            others = [next(iter(self))]
            warnings.warn(
                f"prompt {name!r} was active and is removed; {others[0]!r} is active now. Choose with "
                "model.prompts.activate",
                stacklevel=2,
            )
        self.choose(others)
        self.era = object()

    def rename(self, name: str, new_name: str) -> None:
        """Rename a prompt; its place, its weights, and whether it is active stay the same.

        Args:
            name: Its name.
            new_name: A free name.

        Raises:
            UnknownPromptError: If there is no prompt of that name.
            PromptExistsError: If the new name is already taken.
            ValueError: If the new name is not allowed.
        """
        self._check_there(name)
        self.check_name(new_name)
        # In one step, for threads that read.
        self.__dict__["_modules"] = {new_name if key == name else key: it for key, it in self._modules.items()}
        self.choose([new_name if other == name else other for other in self.active])
        self.era = object()

    def activate(self, *names: str) -> None:
        """Choose the prompts that rows see when a call names none; their tokens come in this order.

        Args:
            *names: Names of prompts, each once; none to activate nothing.

        Raises:
            TypeError: If one is not a string.
            UnknownPromptError: If one does not exist.
            ValueError: If one is given twice.
            UnsupportedError: If together they leave no room for text. The active prompts stay the same.
        """
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"activate was given {name!r}; expected names, one by one: activate('first', 'second')")
            self._check_there(name)
        combination = check_combination(names, self.keys(), "the names to activate")
        check_shared_room({name: self[name] for name in combination}, self.backbone)
        self.choose(combination)

    def set_weight(self, name: str, weight: float) -> None:
        """Weight a prompt against the text and other prompts; the weight is saved with the prompt.

        Args:
            name: Its name.
            weight: Factor on the share of attention that its tokens get, before all shares are normalized to a sum of
                one: 1 as trained, 0 unseen (the positions stay). A gate is multiplied by it.

        Raises:
            UnknownPromptError: If there is no prompt of that name.
            ValueError: If the weight is not from 0 to 65504.
            UnsupportedError: If the model has no place for weights. The weight is unchanged.
        """
        prompt = self[name]
        check_weight(f"the weight of prompt {name!r}", weight)
        before, prompt.weight = prompt.weight, float(weight)
        try:
            with torch.no_grad():
                prompt.place(self.backbone)
        except Exception:
            prompt.weight = before
            raise
        self.era = object()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Split the trained parameters into an optimizer's groups, with the rates that each method asks for.

        Args:
            learning_rate: The rate of groups that do not set one.

        Returns:
            Groups for any torch optimizer: `torch.optim.AdamW(model.prompts.parameter_groups(1e-2))`.
        """
        return [group for prompt in self.values() for group in trained_groups(prompt, learning_rate)]

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Use the model as if it had no prompts, bit for bit, within the context; other threads and tasks keep them."""
        return disable(self)

    def watch(self) -> None:
        """Watch the steps of optimizers that train the prompts, for what their methods do after each."""
        for prompt in self.values():
            watch(prompt, self.backbone)
        self.is_watched = True

    def resolve(self, request: Request, cache: Any, rows: int | None = None) -> Call:
        """Build the prompts of one forward, whose rows are given if they were not checked yet."""
        return resolve.resolve(self, request, cache, rows)


Mapping.register(Prompts)
