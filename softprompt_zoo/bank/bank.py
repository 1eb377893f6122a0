"""A store of very many prompts for one backbone, and their use in a model's rows."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank.importing import Problems, names_in_bank, read_folders, warn_of_problems
from softprompt_zoo.bank.names import check_name, is_name
from softprompt_zoo.bank.opened_bank import OpenedBank, backbone_of
from softprompt_zoo.bank.opening import check_address
from softprompt_zoo.bank.ready_prompts import lend, prepare
from softprompt_zoo.bank.restoring import RecordReader
from softprompt_zoo.bank.stored_form import StoredForm
from softprompt_zoo.bank.stores import Store
from softprompt_zoo.bank.verification import find_damage
from softprompt_zoo.config.checks import check_boolean, check_positive_integer
from softprompt_zoo.model.lending import Ready, ReadyCache
from softprompt_zoo.prompt.prompt import Prompt

CACHE_BYTES = 256 * 2**20


class PromptBank:
    """A store for a very large number of prompts of one backbone.

    A bank holds plain prompts: the virtual tokens that a prompt has in eval mode, and its trained head. It is a folder
    on this machine (LMDB: many processes read while one writes, a second writer waits), or an fsspec address with an
    object for each prompt. Every entry has a checksum.

    Args:
        address: A folder, or an address such as `s3://bucket/bank`. With `model`, the bank is created if there is none.
        model: The model the prompts are for, prompted or not; not changed. `None` opens an
            existing bank to list, verify and delete.
        dtype: The dtype in which `add` stores virtual tokens, for example `torch.float16`; `None` for their own. Heads
            keep theirs.
        as_prefix: Whether `add` stores each prompt as the keys and values of a plain prefix with the same outputs, like
            `zoo.fold`, which engines can serve. For causal models.
        cache_bytes: Maximum size of the prompts that are cached on the model's device, in bytes.
        max_bytes: Maximum size of the folder's file, in bytes; `None` for the size of the disk.
        storage_options: Options of the address's file system, for fsspec.

    Raises:
        MissingPackageError: If the packages of the extra `bank` are not installed.
        BankError: If the address cannot be used, or holds something else.
        BackboneMismatchError: If the bank is for a different model: different sizes, type or weights.
        UnsupportedError: If `as_prefix` is set but engines could not serve prefixes for this model.
        CheckpointError: If the bank is damaged.

    Example:
        >>> bank = zoo.PromptBank("bank", model)
        >>> bank.add("alice", model.prompts["alice"])
        >>> model.prompts.bank = bank
        >>> model(input_ids=text, prompts=["alice", None])
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        model: PreTrainedModel | Backbone | None = None,
        *,
        dtype: torch.dtype | None = None,
        as_prefix: bool = False,
        cache_bytes: int = CACHE_BYTES,
        max_bytes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_positive_integer("cache_bytes", cache_bytes)
        if max_bytes is not None:
            check_positive_integer("max_bytes", max_bytes)
        self.address = check_address(address)
        """The folder or the address, as given."""
        self.dtype = dtype
        """The dtype in which `add` stores virtual tokens; `None` keeps their own."""
        self.as_prefix = as_prefix
        """Whether `add` stores prompts as prefixes for engines."""
        self._form = StoredForm(self.address, model, dtype, as_prefix)
        self._cache = ReadyCache(cache_bytes)
        backbone = self._form.backbone or backbone_of(model)
        self._bank = OpenedBank(self.address, backbone, max_bytes, storage_options)

    @property
    def backbone(self) -> Backbone | None:
        """Sizes of the model; `None` if the bank was opened without one."""
        return self._bank.backbone

    @backbone.setter
    def backbone(self, backbone: Backbone) -> None:
        self._bank.backbone = backbone

    @property
    def _store(self) -> Store:
        return self._bank.store

    def check(self, backbone: Backbone) -> None:
        """Refuse a model that is not the bank's.

        Args:
            backbone: Sizes of a model and its embedding table.

        Raises:
            BackboneMismatchError: If its sizes, type or weights differ.
        """
        self._bank.check(backbone)

    # Writing

    def add(self, name: str, prompt: Prompt, *, overwrite: bool = False) -> None:
        """Store a prompt durably.

        Args:
            name: Its name: letters, digits, `_` and `-`.
            prompt: A prompt for a model with the bank's sizes: `model.prompts[…]`. Not changed.
            overwrite: Whether to replace an existing prompt of that name; readers see either the old or the new one.

        Raises:
            PromptExistsError: If the name is taken.
            BackboneMismatchError: If the prompt is for a model with different sizes.
            UnsupportedError: If it has no values yet, NaN, or values that `dtype` cannot hold; or if it cannot be a
                prefix although `as_prefix` is set.
            ValueError: If the name is not allowed.
            BankError: If the disk is full, or write permission is missing.
        """
        self.add_many({name: prompt}, overwrite=overwrite)

    def add_many(self, prompts: Mapping[str, Prompt], *, overwrite: bool = False) -> None:
        """Store prompts in one transaction, all or none. At an address, writes are rolled back after an error.

        Args:
            prompts: Prompts by name.
            overwrite: As in `add`.

        Raises:
            ZooError: As `add` does.
        """
        if not callable(getattr(prompts, "items", None)):
            raise TypeError(f"prompts is {type(prompts).__name__}; expected a mapping of names to prompts")
        for name in prompts:
            check_name(name)
        self._write(lambda: ((name, self._form.of(name, prompt)) for name, prompt in prompts.items()), overwrite)

    def import_folder(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
        """Store every saved prompt in a folder, in one transaction.

        Args:
            folder: A folder of folders that `zoo.load` can read, as written by `save_pretrained`, `export` or PEFT;
                anything else in it is skipped. A prompt is named after its folder, or `<folder>-<prompt>` if the folder
                holds several. Or a single such folder, whose prompts keep their names. Weight adapters such as PEFT's
                LoRA are skipped too; a warning names those that were saved alongside a prompt. Folders that cannot be
                read, such as damaged ones or those for another model, are skipped with a warning that lists them, as
                are those whose prompts cannot be prefixes if `as_prefix` is set.
            overwrite: As in `add`.

        Returns:
            The names.

        Raises:
            CheckpointError: If none can be read; nothing is stored.
            ValueError: If a name is not allowed, or two prompts would get the same one.
            ZooError: As `add` does.
        """
        backbone = self._bank.model_for("import")
        path, problems = Path(folder), Problems()
        names = names_in_bank(path, problems)
        self._write(lambda: read_folders(path, names, backbone, self._form.of, problems), overwrite)
        warn_of_problems(path, problems)
        return [name for (one, _), name in names.items() if one not in problems]

    def delete(self, *names: str) -> None:
        """Delete prompts, all or none.

        Args:
            *names: Their names.

        Raises:
            UnknownPromptError: If one does not exist.
            BankError: If write permission is missing.
        """
        for name in names:
            if not is_name(name):
                raise self._bank.unknown(name)
        self._store.delete(list(dict.fromkeys(names)))

    def _write(self, prompts: Callable[[], Iterable[tuple[str, Prompt]]], overwrite: bool) -> None:
        backbone = self._bank.model_for("add")
        check_boolean("overwrite", overwrite)
        self._store.write(
            lambda: ((name, self._form.encode(name, prompt, backbone)) for name, prompt in prompts()), overwrite
        )

    # Reading

    def get(self, name: str) -> Prompt:
        """Read a prompt.

        Args:
            name: Its name.

        Returns:
            A merged prompt on the model's device, in the dtype it was stored in; the caller owns it.

        Raises:
            UnknownPromptError: If it does not exist.
            CheckpointError: If the entry is damaged.
        """
        backbone = self._bank.model_for("read")
        found = self._bank.read([name], {}, RecordReader(self.address, backbone, backbone.device, None).prompt)
        if not found:
            raise self._bank.unknown(name)
        return found[name]  # type: ignore[no-any-return]

    __getitem__ = get

    def __contains__(self, name: object) -> bool:
        return bool(self._bank.read([name], {}, lambda one, data: True))

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[str]:
        return self.names()

    def names(self, prefix: str = "") -> Iterator[str]:
        """Iterate over the names, sorted.

        Args:
            prefix: Only names that start with this.

        Returns:
            The names, read lazily.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix is {prefix!r} ({type(prefix).__name__}); expected a string that names begin with")
        return self._store.names(prefix) if is_name(prefix or "-") else iter(())

    def verify(self) -> dict[str, str]:
        """Read and check every entry.

        Returns:
            What is wrong with each damaged entry, by name; empty if the bank is intact. Without a
            model, only checksums are checked.
        """
        return find_damage(self._bank)

    def prepare(self, names: Iterable[str]) -> list[Any]:
        """Preload prompts onto the model's device, so that a forward soon afterwards finds them there.

        Args:
            names: Their names.

        Returns:
            Their `Placement`s, in this order.

        Raises:
            UnknownPromptError: If one does not exist.
            CheckpointError: If an entry is damaged.
        """
        return prepare(self._bank, self.lend, names)

    def lend(self, names: Iterable[str], device: torch.device, dtype: torch.dtype) -> dict[str, Ready]:
        """Prepare prompts for a model; see `softprompt_zoo.model.lending.Lender`."""
        return lend(self._bank, self._cache, names, device, dtype)

    # Lifetime

    def close(self) -> None:
        """Close the bank's file and drop the cached prompts; open the bank again to use it."""
        self._cache.clear()
        self._store.close()

    def __repr__(self) -> str:
        return f"PromptBank({self.address!r})"

    def __deepcopy__(self, memo: Any) -> "PromptBank":
        return self  # a copy of the model reads the same bank

    def __getstate__(self) -> dict[str, Any]:
        kept = {"address": self.address, "dtype": self.dtype, "as_prefix": self.as_prefix}
        copied = {"_bank": copy.copy(self._bank), "_form": copy.copy(self._form)}
        return {**kept, **copied, "cache_bytes": self._cache.max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._cache = ReadyCache(state.pop("cache_bytes"))
        self.__dict__.update(state)
