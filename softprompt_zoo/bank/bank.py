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
        model: The model the prompts are for, with or without prompts of its own; not changed. `None` opens an
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
        BankError: If the place cannot be used, or holds something else.
        BackboneMismatchError: If the bank is for another model: of other sizes, another type, or with other weights.
        UnsupportedError: If `as_prefix` is set, and engines could not serve prefixes for this model.
        CheckpointError: If it is damaged.

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
        """What `add` stores virtual tokens in; `None` for the dtype they have."""
        self.as_prefix = as_prefix
        """Whether `add` stores prompts as prefixes for engines."""
        self._form = StoredForm(self.address, model, dtype, as_prefix)
        self._cache = ReadyCache(cache_bytes)
        backbone = self._form.backbone or backbone_of(model)
        self._bank = OpenedBank(self.address, backbone, max_bytes, storage_options)

    @property
    def backbone(self) -> Backbone | None:
        """Sizes of the model; `None` if it was opened without one."""
        return self._bank.backbone

    @backbone.setter
    def backbone(self, backbone: Backbone) -> None:
        self._bank.backbone = backbone

    @property
    def _store(self) -> Store:
        return self._bank.store

    def check(self, backbone: Backbone) -> None:
        """Refuse another model than the bank's.

        Args:
            backbone: Sizes of a model and its embedding table.

        Raises:
            BackboneMismatchError: If it has other sizes, another type, or other weights.
        """
        self._bank.check(backbone)

    # Writing

    def add(self, name: str, prompt: Prompt, *, overwrite: bool = False) -> None:
        """Store a prompt; it is safe when this returns.

        Args:
            name: Its name: letters, digits, `_` and `-`.
            prompt: A prompt of a model of the bank's sizes: `model.prompts[…]`. Not changed.
            overwrite: Whether it may replace one of that name; readers see the old one or the new one.

        Raises:
            PromptExistsError: If the name is taken.
            BackboneMismatchError: If the prompt is for a model of other sizes.
            UnsupportedError: If it has no values yet, NaN, or some that `dtype` cannot hold; or if `as_prefix`
                is set and it cannot be a prefix.
            ValueError: If the name is not allowed.
            BankError: If there is no room, or no permission to write.
        """
        self.add_many({name: prompt}, overwrite=overwrite)

    def add_many(self, prompts: Mapping[str, Prompt], *, overwrite: bool = False) -> None:
        """Store prompts in one transaction: all or none. At an address, what was written is put back after an error.

        Args:
            prompts: Prompts by name.
            overwrite: As in `add`.

        Raises:
            ZooError: As `add` does.
        """
        if not callable(getattr(prompts, "items", None)):
            raise TypeError(f"prompts is {type(prompts).__name__}; expected prompts by name")
        for name in prompts:
            check_name(name)
        self._write(lambda: ((name, self._form.of(name, prompt)) for name, prompt in prompts.items()), overwrite)

    def import_folder(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
        """Store every saved prompt in a folder, in one transaction.

        Args:
            folder: A folder that holds folders, each of which `zoo.load` reads: what `save_pretrained`, `export` or
                PEFT wrote. Other things in it are skipped. A prompt gets the name of its folder; of a folder with
                several, `<folder>-<prompt>`. Or one such folder itself, whose prompts keep their names. PEFT's LoRA and
                the like are skipped, too; a warning names those that were saved alongside a prompt. So are folders
                that cannot be read, such as damaged ones and those of another model, and those whose prompts cannot be
                prefixes where `as_prefix` is set; a warning lists them.
            overwrite: As in `add`.

        Returns:
            The names.

        Raises:
            CheckpointError: If there is none that can be read; nothing is stored.
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
            UnknownPromptError: If one is not there.
            BankError: If there is no permission to write.
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
            The prompt, merged, on the model's device and in the dtype it was stored in; the caller's own.

        Raises:
            UnknownPromptError: If it is not there.
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
            prefix: Only those that start with this.

        Returns:
            The names, read as they are asked for.
        """
        if not isinstance(prefix, str):
            raise TypeError(f"prefix is {prefix!r} ({type(prefix).__name__}); expected how the names begin, as text")
        return self._store.names(prefix) if is_name(prefix or "-") else iter(())

    def verify(self) -> dict[str, str]:
        """Read every entry.

        Returns:
            What is wrong with each damaged entry, by name; empty if the bank is whole. Without a
            model, checksums alone are checked.
        """
        return find_damage(self._bank)

    def prepare(self, names: Iterable[str]) -> list[Any]:
        """Get prompts ready on the model's device; a forward that names them soon finds them there.

        Args:
            names: Their names.

        Returns:
            Their `Placement`s, in this order.

        Raises:
            UnknownPromptError: If one is not there.
            CheckpointError: If an entry is damaged.
        """
        return prepare(self._bank, self.lend, names)

    def lend(self, names: Iterable[str], device: torch.device, dtype: torch.dtype) -> dict[str, Ready]:
        """Get prompts ready for a model; see `softprompt_zoo.model.lending.Lender`."""
        return lend(self._bank, self._cache, names, device, dtype)

    # Life

    def close(self) -> None:
        """Close the bank's file and drop the prompts that are ready; open the bank again to use it."""
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
