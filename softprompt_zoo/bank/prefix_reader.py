"""Reading the plain prefixes of a bank without a model, as engines do."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt_zoo.backbone import identity
from softprompt_zoo.bank import records
from softprompt_zoo.bank.names import is_name
from softprompt_zoo.bank.opening import check_address, open_bank
from softprompt_zoo.bank.stores import unknown
from softprompt_zoo.errors import CheckpointError, UnsupportedError
from softprompt_zoo.files.damage import FLOATING, is_finite
from softprompt_zoo.registry.discovery import OWN_DISTRIBUTION
from softprompt_zoo.tokens.layer_shape import LayerShape
from softprompt_zoo.tokens.layer_tokens import unflatten_layers

CAUSAL = "causal"
_FLOATING = [str(dtype).removeprefix("torch.") for dtype in FLOATING]


@dataclasses.dataclass(frozen=True)
class PrefixEntry:
    """A bank's description of a prefix."""

    name: str
    stamp: str
    """Checksum of name and content, as a hexadecimal number: if it changes, the prefix was replaced."""
    num_tokens: int
    """Positions that it takes up before the text."""


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The keys and values of a prefix."""

    entry: PrefixEntry
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Key and value `(kv_heads, tokens, head_dim)` of each layer on the CPU, in the dtype they are stored in, as
    attention sees them: normalized, and rotated at positions from 0 on; the text begins at the position after them.
    """

    @property
    def stamp(self) -> str:
        """The entry's stamp."""
        return self.entry.stamp


class PrefixReader:
    """A bank of plain prefixes for one causal model, read without the model.

    For engines that implement attention themselves. It reads prompts stored by a `PromptBank` with `as_prefix`, and
    those that already were keys and values at every layer.

    Args:
        address: A folder, or an address such as `s3://bucket/bank`.
        storage_options: Options of the address's file system, for fsspec.

    Raises:
        MissingPackageError: If the packages of the extra `bank` are not installed.
        BankError: If there is no bank, or it cannot be used.
        CheckpointError: If it is damaged.

    Example:
        >>> reader = zoo.PrefixReader("bank")
        >>> reader.find("alice").num_tokens
        20
        >>> key, value = reader.read("alice").layers[0]
    """

    def __init__(self, address: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> None:
        self.address = check_address(address)
        """The folder or the address, as given."""
        self._store, self._identity = open_bank(self.address, storage_options=storage_options)
        try:
            self._shapes = {site: _shapes(self._identity, site) for site in self._identity["backbone"]["layers"]}
            self._family = str(self._identity["backbone"]["family"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the header of the bank {self.address} does not describe the layers of a model ({error!r}); restore "
                "the bank from a copy"
            ) from error

    @property
    def identity(self) -> Mapping[str, Any]:
        """The bank's description of its model: `model_type`, sizes as `backbone`, a sample of its `embeddings`."""
        return self._identity

    def check_embeddings(
        self,
        rows: Callable[[list[int]], Tensor],
        *,
        model_type: str,
        vocab_size: int,
        hidden_size: int,
        layers: Sequence[Sequence[int]],
    ) -> None:
        """Refuse a model that is not the bank's.

        Args:
            rows: Maps token ids to the output of the model's embedding module, scaled if the model scales it:
                `(ids, hidden)`, on any device and in any dtype.
            model_type: transformers' name of the architecture.
            vocab_size: Rows of the embedding table.
            hidden_size: Their width.
            layers: For each layer, the number of key-value heads and the width of a head.

        Raises:
            BackboneMismatchError: If its sizes, type or weights differ.
        """
        sites = {site: [list(sizes) for sizes in layers] for site in self._shapes}
        sizes = {"family": CAUSAL, "hidden_size": hidden_size, "layers": sites}
        identity.compare(
            self._identity, identity.Candidate(sizes, model_type, vocab_size, rows), f"the bank {self.address}"
        )

    def find(self, name: str) -> PrefixEntry | None:
        """Look up a prefix. Its keys and values are not read, so damage to them is not noticed.

        Args:
            name: Its name.

        Returns:
            What the bank says about it; `None` if it does not exist.

        Raises:
            UnsupportedError: If the entry is not a plain prefix; the message says what to do.
            CheckpointError: If it is damaged.
            BankError: If the bank cannot be reached.
        """
        data = self._first_bytes(name) if is_name(name) else None
        return None if data is None else self._entry(name, *records.decode_header(name, data, self.address))

    def read(self, name: str) -> Prefix:
        """Read a prefix.

        Args:
            name: Its name.

        Returns:
            Its keys and values; the caller owns them.

        Raises:
            UnknownPromptError: If it does not exist.
            UnsupportedError: If the entry is not a plain prefix, or has separate tokens in a layer that reads another
                layer's cache; the message says what to do.
            CheckpointError: If it is damaged, or holds NaN or infinity.
            BankError: If the bank cannot be reached.
        """
        found = self._store.read([name] if is_name(name) else [], {}, self._prefix).get(name)
        if found is None:
            raise unknown(self.address, name)
        return found

    def names(self, prefix: str = "") -> Iterator[str]:
        """Iterate over the names of all entries, sorted.

        Args:
            prefix: Only names that start with this.

        Returns:
            The names, read lazily.
        """
        return self._store.names(prefix) if is_name(prefix or "-") else iter(())

    def close(self) -> None:
        """Close the bank's file; create a new reader to read again."""
        self._store.close()

    def _first_bytes(self, name: str) -> bytes | None:
        """Read a record to the end of its header, or all of a truncated record."""
        data, size = b"", records.FIRST_BYTES
        while len(data) < size:
            found = self._store.peek(name, size)
            if found is None or len(found) < size:
                return found
            data, size = found, records.header_end(found)
        return data

    def _entry(self, name: str, stamp: bytes, header: records.Header) -> PrefixEntry:
        """Return the entry that a plain prefix's header describes; refuse any other header."""
        where = f"entry {name!r} of {self.address}"
        problem = self._problem(header)
        if problem is not None:
            raise UnsupportedError(
                f"{where} {problem}, so it is no plain prefix; add the prompt again with overwrite=True to "
                f"zoo.PromptBank({self.address!r}, model, as_prefix=True)"
            )
        [(site, (dtype, shape))] = header.tensors.items()
        width = sum(layer.features for layer in self._shapes[site])
        if shape[1:] != (width,) or not shape[0] or dtype not in _FLOATING:
            raise CheckpointError(
                f"{where} has {site!r} of shape {shape} and {dtype}; expected floating-point numbers "
                f"(tokens, {width}); {records.INSTEAD}"
            )
        return PrefixEntry(name, stamp.hex(), shape[0])

    def _problem(self, header: records.Header) -> str | None:
        """Return why an entry is not a plain prefix; `None` if it is."""
        if self._family != CAUSAL:
            return f"is for a model of the family {self._family!r}"
        if header.distribution != OWN_DISTRIBUTION:  # only the method's hook knows where its tokens go
            return f"was made by the method {header.method!r} of the package {header.distribution!r}"
        others = [key for key in header.tensors if key not in self._shapes]
        if others or len(header.tensors) != 1:
            return f"holds {', '.join(map(repr, others or header.tensors)) or 'nothing'}"
        if header.config.get("always_visible") is True:
            return "must stay visible to sliding windows (always_visible=True)"
        return None

    def _prefix(self, name: str, data: memoryview) -> Prefix:
        record = records.decode(name, data, self.address)
        entry = self._entry(name, record.stamp, record.header)
        [(site, flat)] = record.tensors.items()
        if not is_finite(flat):
            raise CheckpointError(
                f"entry {name!r} of {self.address} holds NaN or infinity in {site!r}; {records.INSTEAD}"
            )
        tokens = unflatten_layers(flat, self._shapes[site])
        differing = tokens.differing_layer(self._shapes[site])
        if differing is not None:
            raise UnsupportedError(
                f"entry {name!r} of {self.address} has different keys and values in layer {differing[0]} than in layer "
                f"{differing[1]}, whose cache that layer reads, so engines cannot serve it; delete it"
            )
        return Prefix(entry, tuple(zip(tokens.keys, tokens.values, strict=True)))  # type: ignore[arg-type]


def _shapes(described: Mapping[str, Any], site: str) -> list[LayerShape]:
    """Return the shapes of a site's layers from a bank's header."""
    layers = described["backbone"]["layers"][site]
    if not all(map(_are_sizes, layers)):
        raise ValueError(f"sizes {layers}")
    sources = described.get("shared_with", {}).get(site, [None] * len(layers))
    return [
        LayerShape(heads, width, value_dim=sum(other), shared_with=source)
        for (heads, width, *other), source in zip(layers, sources, strict=True)
    ]


def _are_sizes(layer: list[Any]) -> bool:
    return all(type(size) is int and size > 0 for size in layer)
