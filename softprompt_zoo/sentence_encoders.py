"""A prompted encoder inside sentence-transformers: loading what `SentenceTransformer` saved.

`PromptedTransformer` replaces sentence-transformers' own `Transformer`, which reads a folder with `AutoModel`, and so
without prompts. sentence-transformers writes the name of a module's class to the folder.
"""

import functools
from pathlib import Path
from typing import Any

from softprompt_zoo.errors import CheckpointError
from softprompt_zoo.files import prompt_folder
from softprompt_zoo.operations.load_and_export import load


@functools.cache
def _prompted_transformer() -> Any:
    from sentence_transformers.sentence_transformer.modules import Transformer

    def load_config(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        return Transformer._load_config(self, _base(path), *args, **kwargs)

    def load_model(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        model = Transformer._load_model(self, _base(path), *args, **kwargs)
        return load(model, path) if prompt_folder.is_there(Path(path)) else model

    doc = "sentence-transformers' `Transformer`, extended to load a base model and the prompts saved from it."
    members = {"__module__": __name__, "__doc__": doc, "_load_config": load_config, "_load_model": load_model}
    return type("PromptedTransformer", (Transformer,), members)


def _base(folder: str) -> str:
    """Return the name or path of the model that a folder's prompts were trained on; for other folders, the folder."""
    if not prompt_folder.is_there(Path(folder)):
        return folder
    base = prompt_folder.read_index(Path(folder)).base_model
    if base is None:
        raise CheckpointError(
            f"{folder} does not say which model its prompts were trained on; load that one with sentence-transformers, "
            "and its prompts with zoo.load(encoder[0].model, folder)"
        )
    return base


def __getattr__(name: str) -> Any:
    if name == "PromptedTransformer":  # made on first use: sentence-transformers need not be installed
        return _prompted_transformer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
