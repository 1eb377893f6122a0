"""What the scheduler's side of the connector tells the workers with each step."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Load:
    """A prompt to put into a request's blocks."""

    request_id: str
    name: str
    stamp: str
    """What a worker must find the prompt to be."""
    begin: int
    """Tokens of it that vLLM's own prefix cache has already."""
    end: int
    """All its tokens."""
    blocks: tuple[tuple[int | None, ...], ...]
    """By group of the cache the ids of the blocks of tokens 0 to `end`; `None` where the group keeps none."""


@dataclasses.dataclass
class Step:
    """What is to be done in one step."""

    loads: list[Load] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    """Ids of requests that end with an error."""
