"""The processes of a run: one, or several as `accelerate launch` starts them, of which the first prints and writes."""

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from accelerate import PartialState


def count() -> int:
    """Return how many processes share the rows of a step."""
    return int(_state().num_processes)


def is_main() -> bool:
    """Return whether this is the process that prints and writes."""
    return bool(_state().is_main_process)


def wait() -> None:
    """Wait until every process is here."""
    _state().wait_for_everyone()


def console_of_main(console: Console) -> Console:
    """Return the console; in the other processes one that shows nothing."""
    return console if is_main() else Console(quiet=True)


def _state() -> "PartialState":
    """Return what this process knows of the others, as transformers' arguments will find it."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=True) if parse_flag_from_env("ACCELERATE_USE_CPU") else PartialState()
