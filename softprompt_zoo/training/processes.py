"""The processes of a run: one, or several as `accelerate launch` starts them, of which the first prints and writes."""

from rich.console import Console


def count() -> int:
    """Return how many processes share the rows of a step."""
    from accelerate import PartialState

    return int(PartialState().num_processes)


def is_main() -> bool:
    """Return whether this is the process that prints and writes."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def wait() -> None:
    """Wait until every process is here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def console_of_main(console: Console) -> Console:
    """Return the console; in the other processes one that shows nothing."""
    return console if is_main() else Console(quiet=True)
