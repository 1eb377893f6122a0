"""The processes of a run: one, or several started by `accelerate launch`; the main one prints and writes."""

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from accelerate import PartialState


def count() -> int:
    """Return the number of processes that share the rows of a step."""
    return int(_state().num_processes)


def is_main() -> bool:
    """Return whether this is the process that prints and writes."""
    return bool(_state().is_main_process)


def wait() -> None:
    """Wait until every process has reached this point."""
    _state().wait_for_everyone()


def console_of_main(console: Console) -> Console:
    """Return the console; in all but the main process, one that prints nothing."""
    return console if is_main() else Console(quiet=True)


def _state() -> "PartialState":
    """Return the state of the processes, the same one that `TrainingArguments` will use."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=True) if parse_flag_from_env("ACCELERATE_USE_CPU") else PartialState()
