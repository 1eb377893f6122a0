"""More tiny decoders, for the large table; `models.py` has those of every test run."""

from collections.abc import Callable

from transformers import PreTrainedModel

DECODERS: dict[str, Callable[[], PreTrainedModel]] = {}
"""Architecture to what builds its tiny model."""
