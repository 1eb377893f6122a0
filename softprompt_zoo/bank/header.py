"""A bank's header: its format, and the model it is for."""

import itertools
import json
from typing import Any

from softprompt_zoo.backbone import identity
from softprompt_zoo.backbone.backbone import Backbone
from softprompt_zoo.bank import records
from softprompt_zoo.errors import CheckpointError

FORMAT_VERSION = 1


def write_header(backbone: Backbone) -> bytes:
    """Write the header of a new bank.

    Args:
        backbone: Sizes of its model, and its embedding table.

    Returns:
        The bytes, with their checksum.
    """
    content = {"format": FORMAT_VERSION, **identity.describe(backbone)}
    shared = {site: [shape.shared_with for shape in shapes] for site, shapes in backbone.layers.items()}
    if {*itertools.chain.from_iterable(shared.values())} - {None}:
        content["shared_with"] = shared
    return records.seal("", json.dumps(content).encode())


def read_header(data: bytes, address: str) -> dict[str, Any]:
    """Read a bank's header.

    Args:
        data: What `write_header` returned.
        address: The bank, for messages.

    Returns:
        What `identity.describe` returned for its model.

    Raises:
        CheckpointError: If it is damaged, or in a later format.
    """
    text = records.unseal("", data)
    try:
        content = json.loads(text or b"")
        version = content["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        content, version = None, FORMAT_VERSION
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"the bank {address} has format {version!r}, but this version reads {FORMAT_VERSION}; "
            "upgrade softprompt-zoo"
        )
    if not identity.is_description(content):
        raise CheckpointError(f"the header of the bank {address} is damaged; restore the bank from a copy")
    return dict(content)
