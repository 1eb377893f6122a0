"""The prompts of one model: a mapping from name to prompt, and what the stacks ask of it."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.config.checks import check_weight
from softprompt_zoo.config.method_config import NAME_PATTERN
from softprompt_zoo.errors import PromptExistsError, UnknownPromptError
from softprompt_zoo.files.saved_prompts import PromptSet
from softprompt_zoo.model.disabling import disable, is_disabled
from softprompt_zoo.model.generation_state import Generation, running
from softprompt_zoo.model.lending import Borrower, Ready
from softprompt_zoo.model.making import make_prompt
from softprompt_zoo.model.optimizer_steps import watch
from softprompt_zoo.prompt.fits import check_shared_room, fitting_copy
from softprompt_zoo.prompt.prompt import Prompt
from softprompt_zoo.registry.registry import registry
from softprompt_zoo.sites.call import Call, Combination, DecodingState, Layout
from softprompt_zoo.sites.decoding_state import has_text, state_of
from softprompt_zoo.sites.select import check_combination, select
from softprompt_zoo.sites.slots import check_second_text, take_slots
from softprompt_zoo.sites.tasks import split_tasks
from softprompt_zoo.tokens.placement import Placement


class Prompts(Borrower, nn.Module):
    """The prompts of a model, by name, in the order they were added; `model.prompts`."""

    def __init__(self, backbone: Backbone, architecture: str = "", base_name: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        """Sizes of the model."""
        self.architecture = architecture
        """Name of the model's class."""
        self.base_name = base_name
        """Name or path the model was loaded from, if known."""
        self._active: Combination = ()
        self._forget()

    def _forget(self) -> None:
        self._era = object()  # texts that were begun are of another one

    def forget(self) -> None:
        """Let texts that were begun build their prompts anew when they go on, from what prompts and model are then.

        A new text needs no `forget`: whatever has changed, it sees. While a text is decoded, with a cache or within
        one `generate`, its prompts stay as they were built when it began, just as its own keys and values do.
        """
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lent": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for prompt in self.values():
            prompt.belong_to(self)

    def __getitem__(self, name: str) -> Prompt:
        self._check_there(name)
        return self._modules[name]  # type: ignore[return-value]

    def _check_there(self, name: str, instead: str = "") -> None:
        if name not in self._modules:
            there = ", ".join(map(repr, self)) or "none"
            raise UnknownPromptError(f"no prompt {name!r}; the model has {there}{self.advise(name, instead)}")

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

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the prompts that rows see when a call names none, in order."""
        return self._active

    def add(self, /, name: str, method: Any, **options: Any) -> Prompt:
        """Add a prompt; it is not activated.

        Args:
            name: Its name: letters, digits, `_` and `-`.
            method: A method's name, what `get_method` returns, or a ready prompt, of which a copy is added: what
                `blend` or `truncate` returns, or a prompt of another model of the same sizes.
            **options: Options of the method; a ready prompt takes none.

        Returns:
            The prompt.

        Raises:
            PromptExistsError: If the name is taken.
            ValueError: If the name or an option is not allowed.
            TypeError: If there are options beside a ready prompt.
            BackboneMismatchError: If a ready prompt was made for a model of other sizes.
        """
        self.check_name(name)
        if isinstance(method, Prompt):
            self.insert(name, fitting_copy(method, options, self.backbone))
            return self[name]
        options = {**getattr(method, "options", {}), **options}
        loaded = registry.lookup(getattr(method, "name", method))
        prompt = make_prompt(loaded, options, self.backbone)
        self.insert(name, prompt)
        return prompt

    def check_name(self, name: str) -> None:
        """Refuse a name that is taken or not allowed."""
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"prompt name is {name!r}; expected letters, digits, '_' and '-', as templates need")
        if name in self._modules:
            raise PromptExistsError(
                f"the model already has a prompt {name!r}; choose another name, or remove that one first"
            )

    def insert(self, name: str, prompt: Prompt) -> None:
        """Put a ready prompt under a free name."""
        self.check_name(name)
        if prompt.is_merged:
            prompt.widen()
        prompt.train(self.training)
        prompt.belong_to(self)
        watch(prompt, self.backbone)  # a compiled forward cannot
        # Straight into the dictionary: `add_module` refuses names such as "train" that are attributes here.
        self._modules[name] = prompt

    def remove(self, name: str) -> None:
        """Remove a prompt. If it was the only active one, the first that is left is activated, as in PEFT.

        Args:
            name: Its name.

        Raises:
            UnknownPromptError: If there is none of that name.
        """
        self._check_there(name, f"model.prompts.bank.delete({name!r}) deletes it there")
        del self._modules[name]
        was_active = name in self._active
        self._active = tuple(other for other in self._active if other != name)
        if was_active and not self._active and len(self):
            self._active = (next(iter(self)),)
            warnings.warn(
                f"prompt {name!r} was active and is removed; {self._active[0]!r} is active now. Choose with "
                "model.prompts.activate",
                stacklevel=2,
            )
        self._forget()

    def rename(self, name: str, new_name: str) -> None:
        """Give a prompt another name; its place, its numbers, and whether it is active stay.

        Args:
            name: Its name.
            new_name: A free name.

        Raises:
            UnknownPromptError: If there is none of that name.
            PromptExistsError: If the new name is taken.
            ValueError: If the new name is not allowed.
        """
        self._check_there(name)
        self.check_name(new_name)
        # In one step, for threads that read.
        self.__dict__["_modules"] = {new_name if key == name else key: it for key, it in self._modules.items()}
        self._active = tuple(new_name if other == name else other for other in self._active)
        self._forget()

    def activate(self, *names: str) -> None:
        """Choose what rows see when a call names no prompts; their tokens stand in this order.

        Args:
            *names: Names of prompts, each once; none to activate nothing.

        Raises:
            TypeError: If one is no string.
            UnknownPromptError: If one is not there.
            ValueError: If one stands twice.
            UnsupportedError: If they leave no room for text together. What was active stays so.
        """
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"activate was given {name!r}; expected names, one by one: activate('first', 'second')")
            self._check_there(name)
        combination = check_combination(names, self.keys(), "the names to activate")
        check_shared_room({name: self[name] for name in combination}, self.backbone)
        self._active = combination

    def set_weight(self, name: str, weight: float) -> None:
        """Weigh a prompt against the text and against other prompts; it is saved with the prompt.

        Args:
            name: Its name.
            weight: Factor on the share of attention that its tokens get, before all shares are brought to a sum of
                one: 1 as trained, 0 unseen (the positions stay). A gate is multiplied by it.

        Raises:
            UnknownPromptError: If there is none of that name.
            ValueError: If the weight is not from 0 to 65504.
            UnsupportedError: If the model leaves no place for weights. The weight is as before.
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
        self._forget()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Split what is trained into an optimizer's groups, with the rates that each method asks for.

        Args:
            learning_rate: The rate of groups that ask for no other.

        Returns:
            Groups for any torch optimizer: `torch.optim.AdamW(model.prompts.parameter_groups(1e-2))`.
        """
        groups = []
        for prompt in self.values():
            split = prompt.own_groups(learning_rate)
            grouped = {id(parameter) for group in split for parameter in group["params"]}
            rest = {"params": [parameter for parameter in prompt.parameters() if id(parameter) not in grouped]}
            for group in (*split, rest):
                trained = [parameter for parameter in group["params"] if parameter.requires_grad]
                if trained:
                    groups.append({"lr": learning_rate, **group, "params": trained})
        return groups

    def saved(self) -> PromptSet:
        """Return these prompts as files know them."""
        return PromptSet(self.backbone, self.architecture, self.base_name, self._active, dict(self.items()))

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Use the model as if it had no prompts, bit for bit, within the context; other threads and tasks keep them."""
        return disable(self)

    def resolve(self, prompts: Any, task_ids: Any, soft_slots: Tensor | None, cache: Any) -> Call:
        """Build the prompts of one forward.

        Args:
            prompts: As `forward` takes it.
            task_ids: The task of every row, for methods that have tasks; a tensor or a list.
            soft_slots: `(rows, length)`, which virtual token stands at each place of the text, -1 for text.
            cache: The cache that the forward was given, if any; a text in it goes on with the prompts it began with.

        Returns:
            The call; its selection is empty where no prompt is to be seen.

        Raises:
            ValueError: If an entry, a task or a slot is out of range.
            UnsupportedError: If `generate` runs the model on a text of its own, where slots are given.
        """
        generation = running(self)
        in_generate = generation is not None
        is_off = is_disabled(self)
        if generation is not None:
            prompts = generation.combinations if prompts is None else prompts
            task_ids = generation.task_ids if task_ids is None else task_ids
            if soft_slots is None and generation.soft_slots is not None and not is_off:
                check_second_text(self.backbone)
                soft_slots = generation.soft_slots
        decoding = self._decoding_of(generation, cache)
        lent: dict[str, Ready] = {}
        if is_off:
            selection = select(None, (), ())
        else:
            held = None if decoding is None else decoding.lent
            lent = self.borrow(prompts, held, decoding is not None or has_text(cache))
            selection = select(prompts, self.keys(), self._active, self.describe_loan(lent))
        placements = {
            name: lent[name].placement if name in lent else self._place(name, decoding) for name in selection.names
        }
        selection, placements = split_tasks(selection, placements, task_ids)
        heads = self._heads(selection.combinations, lent)
        slots = None
        if soft_slots is not None and not is_off:
            is_checked = in_generate and has_text(cache)
            selection, slots = take_slots(selection, placements, soft_slots, in_generate, is_checked)
        if selection.rows is not None:
            selection.rows = selection.rows.to(self._device())
        return Call(selection, placements, self.training, slots=slots, heads=heads, decoding=decoding)

    def active_heads(self) -> list[nn.ModuleDict | None]:
        """Return the trained task head of the active prompts, for a forward that takes no prompts of its own."""
        return self._heads([() if is_disabled(self) else self._active], {})

    def keep_layout(self, layout: Layout) -> None:
        """Remember where an encoder's text went, for a `generate` that returns the encoder's states."""
        generation = running(self)
        if generation is not None and self.backbone.kind.has_two_texts:
            generation.layout = layout

    def _decoding_of(self, generation: Generation | None, cache: Any) -> DecodingState | None:
        """Return what a text goes on with, or a new one; `None` in a compiled forward, which builds all anew."""
        if torch.compiler.is_compiling():
            return None
        found = None if generation is None else generation.decoding
        if found is None:
            found = state_of(cache) or DecodingState(self._era)
        if generation is not None:
            generation.decoding = found
        return found.renew(self._era)

    def _place(self, name: str, decoding: DecodingState | None) -> Placement:
        prompt = self[name]
        if decoding is None or torch.is_grad_enabled() or self.training:
            if not torch.compiler.is_compiling():
                watch(prompt, self.backbone)
            return prompt.place(self.backbone)
        if name not in decoding.placements:
            decoding.placements[name] = prompt.place(self.backbone)
        return decoding.placements[name]

    def _heads(self, combinations: Sequence[Combination], lent: Mapping[str, Ready]) -> list[nn.ModuleDict | None]:
        """Find the head of each combination: that of its last prompt that has one."""
        heads: list[nn.ModuleDict | None] = []
        for combination in combinations:
            heads.append(None)
            for part in combination:
                name = part.partition("#")[0]
                own = (lent[name] if name in lent else self[name]).head
                heads[-1] = heads[-1] if own is None else own
        return heads

    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.parameters()), self.backbone.device)


Mapping.register(Prompts)
